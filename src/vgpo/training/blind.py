"""The blind gate: how often the policy answers a prompt right without its images.

Each prompt of the data set is asked once, with the policy of the moment it is first met. The result is kept for the
rest of the run, on every process, and is part of a checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vgpo.metric_names import ADAPTIVE_TEXT_ONLY_ACCURACY
from vgpo.policy.ablation import TextOnly
from vgpo.policy.prompts import EncodedPrompt
from vgpo.ratio import Ratio
from vgpo.references import num_options
from vgpo.rewards.checked import RewardFunction, is_async
from vgpo.training.batches import Batch
from vgpo.training.collective import Collective
from vgpo.training.records import is_correct, problem_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # of a row, which a reward function gets under other names


@dataclass(frozen=True)
class TextOnlyResult:
    """What is known of a prompt without its images."""

    num_right: int
    """Right answers among the K rollouts."""
    num_options: int
    """Of a multiple-choice question; 0 for any other."""


@dataclass(frozen=True)
class TextOnlyRequest:
    """Prompts to answer without their images; all processes have a request at once, with as many prompts each."""

    rows: list[int]
    """Of the data set; a process with too few new ones repeats one."""
    prompts: list[EncodedPrompt]
    """Without images, one per row."""
    num_rollouts: int
    """K, responses to each prompt."""
    seed: int
    """For the random state of the sampling, in [0, 2^63); equal on all processes."""

    @property
    def repeated(self) -> list[EncodedPrompt]:
        """The prompt of each response; those of a row follow one another."""
        return [prompt for prompt in self.prompts for _ in range(self.num_rollouts)]


Answer = Callable[[TextOnlyRequest], Sequence[TextOnlyResult]]


class BlindGate:
    """Answers to prompts without their images, each asked once.

    Args:
        num_rollouts: K >= 1.
        text_only: takes the images out of a prompt.
        seed: of the run.
        collective: the processes of the run.
    """

    def __init__(self, num_rollouts: int, text_only: TextOnly, seed: int, collective: Collective) -> None:
        self.num_rollouts = num_rollouts
        self._text_only = text_only
        self._seed = seed
        self._collective = collective
        self._results: dict[int, TextOnlyResult] = {}

    def signals(self, batch: Batch, answer: Answer) -> dict[str, Tensor]:
        """`text_only_accuracy` and `chance` of a rollout batch, (B,) each; 0 in rows without an image.

        Called by all processes at once.

        Args:
            batch: with `row_index` (B,), `visual_rows` (B,) and `prompts`; B is equal on all processes.
            answer: samples and grades; called on all processes if any of them has a row that was not asked yet.
        """
        rows: list[int] = batch["row_index"].tolist()
        visual: list[bool] = batch["visual_rows"].tolist()
        self._ask_missing(batch, rows, answer)
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

    def _ask_missing(self, batch: Batch, rows: list[int], answer: Answer) -> None:
        """Fill the cache, alike on all processes: the first process that has a row asks it."""
        missing = self._missing_by_process(batch, len(rows))
        number = max(map(len, missing))
        if number == 0:
            return
        own = missing[self._collective.rank]
        asked = own + rows[:1] * (number - len(own))
        prompts = [self._text_only(batch["prompts"][rows.index(row)], 0) for row in asked]
        new = [row for asked_there in missing for row in asked_there]
        found = answer(TextOnlyRequest(asked, prompts, self.num_rollouts, sampling_seed(self._seed, new)))
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

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: it was found with another number of rollouts.
        """
        if state["num_rollouts"] != self.num_rollouts:
            raise ValueError(
                f"The checkpoint holds answers without images from blind_rollouts={state['num_rollouts']}, and the "
                f"run has blind_rollouts={self.num_rollouts}. Resume with the value of the checkpoint."
            )
        self._results = {row: TextOnlyResult(*numbers) for row, numbers in state["results"].items()}


def sampling_seed(seed: int, rows: Sequence[int]) -> int:
    """The seed of the sampling for these rows of the data set, in [0, 2^63)."""
    return int(np.random.SeedSequence([seed, *rows]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def text_only_statistics(text_only_accuracy: Tensor, visual_rows: Tensor) -> dict[str, Ratio]:
    """The mean accuracy without images over the rollouts with an image; (B,), bool (B,)."""
    return {ADAPTIVE_TEXT_ONLY_ACCURACY: Ratio((text_only_accuracy * visual_rows).sum(), visual_rows.sum())}


def grade_responses(
    request: TextOnlyRequest,
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    completion_ids: Sequence[list[int]],
    reward: RewardFunction,
    tokenizer: "PreTrainedTokenizerBase",
    trainer_state: Any,
) -> list[TextOnlyResult]:
    """How many of the K responses to each row the accuracy reward takes for right.

    What the reward logs is dropped: the metrics and completions of a run are those of its rollouts.

    Args:
        request: what was answered.
        rows: the data-set row of each prompt of the request, as a reward function gets it.
        completions: the decoded responses; K of each row follow one another.
        completion_ids: their tokens.
        reward: the accuracy reward, a synchronous function.
        tokenizer: decodes prompts of rows without a column `problem`.
        trainer_state: for the reward function.
    """
    num = request.num_rollouts
    repeated = [row for row in rows for _ in range(num)]
    columns = {name: [row[name] for row in repeated] for name in rows[0] if name not in NOT_COLUMNS}
    prompts = [row["prompt"] for row in repeated]
    rewards = reward(
        prompts=prompts,
        completions=[_as_prompt(text, prompt) for text, prompt in zip(completions, prompts, strict=True)],
        completion_ids=list(completion_ids),
        trainer_state=trainer_state,
        log_extra=_drop,
        log_metric=_drop,
        **columns,
    )
    right = [bool(is_correct(value)) for value in rewards]
    if len(right) != len(repeated):
        raise ValueError(
            f"The accuracy reward returned {len(right)} rewards, expected {len(repeated)}, one for each response "
            "without images. Return one number per completion."
        )
    problems = [
        problem_of(row, prompt.token_ids, tokenizer) for row, prompt in zip(rows, request.prompts, strict=True)
    ]
    return [
        TextOnlyResult(sum(right[i * num : (i + 1) * num]), num_options(problem, row.get("answer")))
        for i, (row, problem) in enumerate(zip(rows, problems, strict=True))
    ]


def _as_prompt(text: str, prompt: Any) -> Any:
    """A response in the form of its prompt: a message, or text."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _drop(*args: Any) -> None:
    """In place of a function that logs."""


def check_blind_gate(reward: Any, name: str, *, has_row_numbers: bool, only_samples: bool) -> None:
    """Whether a run can ask its prompts without their images.

    Args:
        reward: the accuracy reward.
        name: its name.
        has_row_numbers: whether the rows of the data set can be told apart by number.
        only_samples: whether a rollout is what the policy samples after its prompt, without tools.

    Raises:
        ValueError: it cannot; names the reason and the fix.
    """
    is_model = isinstance(reward, nn.Module)
    faults = {
        "a data set whose rows have no number (IterableDataset). Use a map-style one": not has_row_numbers,
        "tools, environments, a rollout_func or a tokenizer with a response schema. Leave them out": not only_samples,
        f"the reward model {name!r} as accuracy reward. Set filter_reward to a reward function": is_model,
        f"the async reward {name!r} as accuracy reward. Set filter_reward to a synchronous function": (
            not is_model and is_async(reward)
        ),
    }
    for fault, is_found in faults.items():
        if is_found:
            raise ValueError(f"shaping_options: blind_gate does not work with {fault}, or set blind_gate to false.")
