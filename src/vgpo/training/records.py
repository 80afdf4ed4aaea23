"""Rollouts as readable records: text, rewards, and the effect of the shaping on each token.

A `RolloutRecord` is what the trainer hands to its `rollout_writer`, a line of `rollouts.jsonl` in a run folder, and
what the report, `vgpo watch` and `vgpo inspect` read.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from PIL import Image
from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from vgpo.records import Numbers, Record, Texts, Whole, describe_value, fault
from vgpo.text import visible

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

VERSION: Final = 1
PNG_MODES = ("1", "L", "LA", "RGB", "RGBA")
Flags = Annotated[list[bool | None], Field(fail_fast=True)]


def one_fault(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error in place of one for each type that a diagnostic can have."""
    try:
        return validate(value)
    except ValidationError as error:
        message = f"found {describe_value(value)}, expected a number, or a list of numbers or of true and false"
        raise fault(message) from error


Diagnostic = Annotated[Numbers | Flags | float | None, WrapValidator(one_fault)]


class RolloutRecord(Record):
    """A response to a prompt, with its rewards and measurements. None also represents a non-finite number.

    A value per token is None at tokens that the policy did not sample: the output of a tool, or a response that was
    truncated and masked.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    """Of this layout, `VERSION`. Lines of vgpo 0.1 have none: see `upgrade_0_1`."""
    step: int
    """Optimizer step that the rollout is trained on, from 1."""
    group: int
    """Rollouts of one draw of a prompt share this number."""
    row: int
    """Of the dataset, from 0."""
    id: Any
    """The dataset's name for the row; None if it has none."""
    problem: str
    """The question; the decoded prompt if the dataset has no column `problem`."""
    answer: Any
    """The reference answer, as it is in the dataset; None if it has none."""
    media: list[str]
    """Images of the prompt, in order: paths relative to the run folder, named by their content."""
    completion: str
    """The decoded response, without special tokens."""
    token_ids: Whole | None
    """The response, with its end token if it has one; None in lines of versions before 0.1."""
    tokens: Texts
    """Text of each token."""
    focus: Numbers | None
    """Visual focus rho of each token (Eq. 4), in [0, 1]; None without an image, and where it was not measured."""
    advantage: float | None
    """A_i, the advantage in the group, before it is shaped."""
    token_advantages: Numbers | None
    """The advantage that each token is trained with, for VGPO A^V (Eq. 12); None if `advantage` is."""
    rewards: dict[str, float | None]
    """By reward function, in order, before `reward_weights`; None where it gave none."""
    correct: bool | None
    """Whether the accuracy reward (`vgpo.training.accuracy`) is above one half; None where it gave none."""
    diagnostics: dict[str, Diagnostic]
    """What the shaping left, by name: a value per token (`gate`, `token_factor`) or a number (`rollout_factor`)."""

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        values_by_place: dict[tuple[str, ...], Any] = {
            (name,): getattr(self, name) for name in ("token_ids", "focus", "token_advantages")
        }
        values_by_place |= {("diagnostics", name): values for name, values in self.diagnostics.items()}
        for place, values in values_by_place.items():
            if isinstance(values, list) and len(values) != len(self.tokens):
                raise fault(f"found {len(values)} values, expected {len(self.tokens)}, one for each token", *place)
        return self

    def per_token(self, name: str) -> list[Any] | None:
        """A diagnostic with a value per token; None if the shaping left none."""
        values = self.diagnostics.get(name)
        return values if isinstance(values, list) else None

    def per_rollout(self, name: str) -> float | None:
        """A diagnostic that is one number; None if the shaping left none, or one that is not finite."""
        value = self.diagnostics.get(name)
        return None if isinstance(value, list) else value


# By the path that `RolloutRecord.media` has; in a mode that PNG can store.
Images = Mapping[str, Image.Image]
RolloutWriter = Callable[[Sequence[RolloutRecord], Images], None]


class RolloutRecord01(Record):
    """A line as vgpo 0.1 wrote it; its other keys are diagnostics of the shaping."""

    model_config = ConfigDict(extra="allow")

    step: int
    group: int
    row: int
    id: Any = None
    problem: str
    answer: Any
    images: list[str]
    completion: str
    token_ids: Whole | None = None
    tokens: Texts
    focus: Numbers | None
    advantage: float | None
    rewards: dict[str, float | None]


def upgrade_0_1(line: Mapping[str, Any], accuracy_reward: Callable[[tuple[str, ...]], str | None]) -> RolloutRecord:
    """A line of vgpo 0.1 as a current record: A^V is computed from the stored factors.

    Args:
        line: the JSON object.
        accuracy_reward: which of these reward functions is the accuracy; None if none is.

    Raises:
        ValidationError: a field is missing or is not of its type.
    """
    old = RolloutRecord01.model_validate(line)
    accuracy = accuracy_reward(tuple(old.rewards))
    fields = {name: getattr(old, name) for name in RolloutRecord01.model_fields if name != "images"}
    record = RolloutRecord(
        version=VERSION,
        media=old.images,
        token_advantages=None,
        correct=None if accuracy is None else is_correct(old.rewards.get(accuracy)),
        diagnostics=old.model_extra or {},
        **fields,
    )
    return record.model_copy(update={"token_advantages": advantages_0_1(record)})


def advantages_0_1(record: RolloutRecord) -> Numbers | None:
    """A^V = A_i (1 + psi) (1 + phi) of each token (Eq. 12); without shaping A_i."""
    rollout_factor = record.diagnostics.get("rollout_factor", 1.0)
    if record.advantage is None or not isinstance(rollout_factor, float):
        return None
    scale = record.advantage * rollout_factor
    token_factors = record.per_token("token_factor") or [1.0] * len(record.tokens)
    return [None if factor is None else scale * factor for factor in token_factors]


def rollout_records(
    *,
    step: int,
    batch: Mapping[str, Any],
    dataset_rows: Sequence[Mapping[str, Any]],
    reward_names: Sequence[str],
    accuracy_reward: str,
    action_mask: "Tensor",
    focus: "Tensor | None",
    diagnostics: Mapping[str, "Tensor"],
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[list[RolloutRecord], dict[str, Image.Image]]:
    """One record for each row of `dataset_rows`, the first rows of `batch`, and the images that they name.

    Args:
        step: the optimizer step that the rollouts are trained on, from 1.
        batch: a micro-batch with ids and masks of prompts and completions, `visual_rows`, `scalar_advantages` (B,),
            `advantages` (B, T), `rewards`, `group_ids` and `row_index`.
        dataset_rows: the dataset row of each rollout; what it lacks is read off the batch, or left out.
        reward_names: names of the columns of `batch["rewards"]`.
        accuracy_reward: which of them is the accuracy.
        action_mask: the tokens that the policy sampled; bool (B, T). The others are in the records too, with None for
            what is measured of a token.
        focus: rho (B, T), or None where it was not measured.
        diagnostics: what the shaping left, (B, T) or (B,).
        tokenizer: decodes token by token.
    """
    # Rollouts of a group share their images: each is stored once.
    images = {id(image): image for row in dataset_rows for image in images_of(row)}
    stored = {key: stored_image(image) for key, image in images.items()}
    records = []
    for i, row in enumerate(dataset_rows):
        ids = response_ids(batch["completion_ids"][i], batch["completion_mask"][i], tokenizer.pad_token_id)
        mask = action_mask[i].tolist()[: len(ids)]
        rewards = dict(zip(reward_names, map(finite, batch["rewards"][i].tolist()), strict=True))
        record = RolloutRecord(
            version=VERSION,
            step=step,
            group=int(batch["group_ids"][i]),
            row=int(batch["row_index"][i]),
            id=row.get("id"),
            problem=problem_of(row, batch["prompt_ids"][i][batch["prompt_mask"][i].bool()], tokenizer),
            answer=row.get("answer"),
            media=[stored[id(image)][0] for image in images_of(row)],
            completion=tokenizer.decode(ids, skip_special_tokens=True),
            token_ids=ids,
            tokens=[tokenizer.decode([token]) for token in ids],
            focus=sampled_values(focus[i], mask) if focus is not None and batch["visual_rows"][i] else None,
            advantage=finite(float(batch["scalar_advantages"][i])),
            token_advantages=sampled_values(batch["advantages"][i], mask),
            rewards=rewards,
            correct=is_correct(rewards[accuracy_reward]),
            diagnostics={name: diagnostic(values[i], mask) for name, values in diagnostics.items()},
        )
        records.append(record)
    return records, dict(stored.values())


def images_of(row: Mapping[str, Any]) -> list[Image.Image]:
    """The images of a row of the dataset."""
    return list(row.get("images") or filter(None, [row.get("image")]))


def stored_image(image: Image.Image) -> tuple[str, Image.Image]:
    """The path of an image in a run folder, made of its content, and the image in a mode that PNG can store."""
    stored = image if image.mode in PNG_MODES else image.convert("RGB")
    content = hashlib.sha256(f"{stored.mode} {stored.size} ".encode() + stored.tobytes())
    return f"images/{content.hexdigest()[:20]}.png", stored


def problem_of(row: Mapping[str, Any], prompt: "Tensor | list[int]", tokenizer: "PreTrainedTokenizerBase") -> str:
    """The question of a row, else the decoded prompt."""
    problem = row.get("problem")
    return problem if isinstance(problem, str) else tokenizer.decode(prompt, skip_special_tokens=True)


def is_correct(accuracy: float | None) -> bool | None:
    """Whether an accuracy reward says so; None if there is none."""
    return None if accuracy is None else accuracy > 0.5


def response_ids(padded: "Tensor", mask: "Tensor", padding: int) -> list[int]:
    """The tokens of a response (T,), also of one that was cut off and masked, which ends in no padding."""
    ids: list[int] = padded.tolist()
    length = int(mask.sum()) or max((i + 1 for i, token in enumerate(ids) if token != padding), default=0)
    return ids[:length]


def sampled_values(values: "Tensor", mask: Sequence[bool]) -> list[Any]:
    """The values of a response's tokens (T,): None at those that the policy did not sample."""
    return [finite(value) if sampled else None for value, sampled in zip(values.tolist(), mask, strict=False)]


def diagnostic(values: "Tensor", mask: Sequence[bool]) -> list[Any] | float | None:
    """What the shaping left of a rollout: (T,) or one number."""
    return sampled_values(values, mask) if values.ndim else finite(float(values))


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown_fields(record: RolloutRecord) -> dict[str, Any]:
    """The fields of a rollout for trackers, as texts without control sequences."""
    focus = [rho for rho in record.focus or [] if rho is not None]
    return {
        "step": record.step,
        "row": record.row,
        "problem": visible(record.problem),
        "answer": visible(str(record.answer)),
        "completion": visible(record.completion),
        **{f"reward/{visible(name)}": reward for name, reward in record.rewards.items()},
        "advantage": record.advantage,
        "mean focus": sum(focus) / len(focus) if focus else None,
    }


def shown_text(record: RolloutRecord, images: Images) -> str:
    """The fields of a rollout as text, with the numbers of its images among `images`."""
    numbers = [str(list(images).index(name)) for name in record.media]
    lines = {**shown_fields(record), "images": ", ".join(numbers) or "none"}
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def code_block(text: str) -> str:
    """Markdown that shows `text` as it is: no line of an indented block can end it."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
