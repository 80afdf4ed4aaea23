"""The blind gate: how often the policy answers a prompt correctly without its images.

Each prompt of the dataset is asked once, with the policy at the time it is first sampled. The result is kept for the
rest of the run, on every process, and is part of a checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vgpo.metric_names import ADAPTIVE_TEXT_ONLY_ACCURACY
from vgpo.policy.ablation import TextOnly
from vgpo.policy.prompts import EncodedPrompt, generation_fields, row_with_images_in_prompt
from vgpo.policy.undisturbed import undisturbed
from vgpo.ratio import Ratio
from vgpo.references import num_options
from vgpo.rewards.checked import is_async
from vgpo.training.batches import Batch
from vgpo.training.collective import Collective
from vgpo.training.records import is_correct, problem_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # of a row, which a reward function gets under other names


@dataclass(frozen=True)
class TextOnlyResult:
    """The result of a prompt without its images."""

    num_right: int
    """Right answers among the K rollouts."""
    num_options: int
    """Of a multiple-choice question; 0 for any other."""


@dataclass(frozen=True)
class TextOnlyRequest:
    """Prompts to answer without their images; all processes have a request at once, with as many prompts each."""

    rows: list[int]
    """Of the dataset; a process with too few new ones repeats one."""
    prompts: list[EncodedPrompt]
    """Without images, one per row."""
    num_rollouts: int
    """K, responses to each prompt."""
    seed: int
    """For the random state of the sampling, in [0, 2^63); equal on all processes."""


@dataclass(frozen=True, kw_only=True)
class TextOnlyHost:
    """What a trainer does for the gate."""

    reward: Any
    """The accuracy reward."""
    tokenizer: "PreTrainedTokenizerBase"
    """Decodes responses, and prompts of rows without a column `problem`."""
    model: Callable[[], nn.Module]
    """The policy."""
    trainer_state: Callable[[], Any]
    """What reward functions get as `trainer_state`."""
    fetch: Callable[[Sequence[int]], list[dict[str, Any]]]
    """Rows of the dataset by number."""
    sample: Callable[[list[list[int]], dict[str, Any], int], list[list[int]]]
    """The tokens of a response to each of the prompts, given their tokens, their token types, and the number K of
    equal prompts that follow one another."""
    phase: Callable[[str], AbstractContextManager[None]]
    """Times a phase of training."""


class BlindGate:
    """Answers to prompts without their images, each asked once.

    Args:
        num_rollouts: K >= 1.
        text_only: takes the images out of a prompt.
        seed: of the run.
        collective: the processes of the run.
        host: samples and grades; on all processes at once if any of them has a row that was not asked yet.
    """

    def __init__(
        self, num_rollouts: int, text_only: TextOnly, seed: int, collective: Collective, host: TextOnlyHost
    ) -> None:
        self.num_rollouts = num_rollouts
        self._text_only = text_only
        self._seed = seed
        self._collective = collective
        self._host = host
        self._results: dict[int, TextOnlyResult] = {}

    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """`text_only_accuracy` and `chance` of a rollout batch, (B,) each; 0 in rows without an image.

        Called by all processes at once.

        Args:
            batch: with `row_index` (B,), `visual_rows` (B,) and `prompts`; B is equal on all processes.
        """
        rows: list[int] = batch["row_index"].tolist()
        visual: list[bool] = batch["visual_rows"].tolist()
        self._ask_missing(batch, rows)
        results = [
            self._results[row] if looks else TextOnlyResult(0, 0) for row, looks in zip(rows, visual, strict=True)
        ]
        accuracy = [result.num_right / self.num_rollouts for result in results]
        chance = [1 / result.num_options if result.num_options else 0.0 for result in results]
        device = batch["row_index"].device
        return {
            "text_only_accuracy": torch.tensor(accuracy, device=device),
            "chance": torch.tensor(chance, device=device),
        }

    def statistics(self, batch: Batch) -> dict[str, Ratio]:
        """The mean of `text_only_accuracy` over the rollouts with an image."""
        accuracy, looks = batch["text_only_accuracy"], batch["visual_rows"]
        return {ADAPTIVE_TEXT_ONLY_ACCURACY: Ratio((accuracy * looks).sum(), looks.sum())}

    def _ask_missing(self, batch: Batch, rows: list[int]) -> None:
        """Fill the cache identically on all processes: the first process that has a row asks it."""
        missing = self._missing_by_process(batch, len(rows))
        number = max(map(len, missing))
        if number == 0:
            return
        own = missing[self._collective.rank]
        asked = own + rows[:1] * (number - len(own))
        prompts = [self._text_only(batch["prompts"][rows.index(row)], 0) for row in asked]
        new = [row for asked_there in missing for row in asked_there]
        request = TextOnlyRequest(asked, prompts, self.num_rollouts, sampling_seed(self._seed, new))
        found = answer_text_only(request, self._host)
        numbers = torch.tensor([[result.num_right, result.num_options] for result in found])
        everywhere = self._collective.gather_rows(numbers.to(batch["row_index"].device)).tolist()
        for process, asked_there in enumerate(missing):
            for place, row in enumerate(asked_there):
                self._results[row] = TextOnlyResult(*everywhere[process * number + place])

    def _missing_by_process(self, batch: Batch, num_rows: int) -> list[list[int]]:
        """For each process, the rows that it asks; no row is asked by two."""
        rows = self._collective.gather_rows(batch["row_index"]).tolist()
        visual = self._collective.gather_rows(batch["visual_rows"]).tolist()
        missing: list[list[int]] = [[] for _ in range(self._collective.world_size)]
        met = set(self._results)
        for place, (row, looks) in enumerate(zip(rows, visual, strict=True)):
            if looks and row not in met:
                met.add(row)
                missing[place // num_rows].append(row)
        return missing

    def state(self) -> dict[str, Any]:
        """What was found so far, for a checkpoint."""
        results = {row: [result.num_right, result.num_options] for row, result in self._results.items()}
        return {"num_rollouts": self.num_rollouts, "results": results}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: the checkpoint has none, or it was found with another number of rollouts.
        """
        if state is None:
            raise ValueError(
                "The checkpoint was saved without blind_gate, and the run has blind_gate: true in shaping_options. "
                "Resume with the value of the checkpoint, or begin a new run from its weights."
            )
        if state["num_rollouts"] != self.num_rollouts:
            raise ValueError(
                f"The checkpoint holds answers without images from blind_rollouts={state['num_rollouts']}, and the "
                f"run has blind_rollouts={self.num_rollouts}. Resume with the value of the checkpoint."
            )
        self._results = {row: TextOnlyResult(*numbers) for row, numbers in state["results"].items()}


def sampling_seed(seed: int, rows: Sequence[int]) -> int:
    """The seed of the sampling for these rows of the dataset, in [0, 2^63)."""
    return int(np.random.SeedSequence([seed, *rows]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def answer_text_only(request: TextOnlyRequest, host: TextOnlyHost) -> list[TextOnlyResult]:
    """Sample and grade the responses. Random state, metrics and logs of the run are unchanged."""
    num, tokenizer = request.num_rollouts, host.tokenizer
    rows = [{**row, **row_with_images_in_prompt(row)} for row in host.fetch(request.rows)]
    repeated = [prompt for prompt in request.prompts for _ in range(num)]
    with host.phase("generation"), undisturbed(host.model()):
        torch.manual_seed(request.seed)
        ids = host.sample([prompt.token_ids for prompt in repeated], generation_fields(repeated), num)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        right = grade_responses([row for row in rows for _ in range(num)], texts, ids, host)
    results = []
    for i, (row, prompt) in enumerate(zip(rows, request.prompts, strict=True)):
        options = num_options(problem_of(row, prompt.token_ids, tokenizer), row.get("answer"))
        results.append(TextOnlyResult(sum(right[i * num : (i + 1) * num]), options))
    return results


def grade_responses(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[str], ids: list[list[int]], host: TextOnlyHost
) -> list[bool]:
    """Whether the accuracy reward accepts each response as correct. Its logs are discarded.

    Args:
        rows: the dataset row of each response, with images in its prompt, as a reward function gets it.
        texts: the decoded responses.
        ids: their tokens.
        host: has the reward.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_COLUMNS}
    prompts = [row["prompt"] for row in rows]
    rewards = host.reward(
        prompts=prompts,
        completions=[_as_prompt(text, prompt) for text, prompt in zip(texts, prompts, strict=True)],
        completion_ids=ids,
        trainer_state=host.trainer_state(),
        log_extra=_drop,
        log_metric=_drop,
        **columns,
    )
    if len(rewards) != len(rows):
        raise ValueError(
            f"The accuracy reward returned {len(rewards)} rewards, expected {len(rows)}, one for each response to a "
            "prompt without images. Return one number per completion."
        )
    return [bool(is_correct(value)) for value in rewards]


def _as_prompt(text: str, prompt: Any) -> Any:
    """A response in the form of its prompt: a message, or text."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _drop(*args: Any) -> None:
    """Replacement for logging functions."""


def check_blind_gate(host: TextOnlyHost, name: str, *, has_row_numbers: bool, only_samples: bool) -> None:
    """Check that a run can ask its prompts without their images.

    Args:
        host: has the accuracy reward and the tokenizer.
        name: of the accuracy reward.
        has_row_numbers: whether the rows of the dataset have stable numbers.
        only_samples: whether a rollout is one response of the policy, without tools.

    Raises:
        ValueError: it cannot; names the reason and the fix.
    """
    is_model = isinstance(host.reward, nn.Module)
    schemas = [name for name in ("response_template", "response_schema") if getattr(host.tokenizer, name, None)]
    faults = {
        "a dataset whose rows have no number (IterableDataset). Use a map-style one": not has_row_numbers,
        "tools, environments or a rollout_func. Leave them out": not only_samples,
        f"a tokenizer that parses responses ({schemas}). Set that to None": bool(schemas),
        f"the reward model {name!r} as accuracy reward. Set filter_reward to a reward function": is_model,
        f"the async reward {name!r} as accuracy reward. Set filter_reward to a synchronous function": (
            not is_model and is_async(host.reward)
        ),
    }
    for fault, is_found in faults.items():
        if is_found:
            raise ValueError(f"shaping_options: blind_gate does not work with {fault}, or set blind_gate to false.")
