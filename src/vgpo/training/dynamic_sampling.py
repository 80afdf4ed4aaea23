"""Dynamic sampling (DAPO, arXiv 2503.14476): only groups of mixed accuracy are trained on."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vgpo.metric_names import (
    SAMPLING_ACCURACY_DRAWN,
    SAMPLING_GROUPS_CUT,
    SAMPLING_GROUPS_DRAWN,
    SAMPLING_GROUPS_KEPT,
    SAMPLING_GROUPS_TOO_EASY,
    SAMPLING_GROUPS_TOO_HARD,
    SAMPLING_ROUNDS,
)
from vgpo.training.batches import Batch, select_rows
from vgpo.training.collective import Collective
from vgpo.training.settings import DynamicSamplingSettings


class DynamicSamplingError(RuntimeError):
    """The rounds ran out before the batch was full."""


class PromptStream:
    """Endless, seeded stream of dataset rows: each epoch a new permutation, no row twice within one.

    Every process holds the same stream and takes its own share of each draw, so nothing is exchanged.
    """

    def __init__(self, num_rows: int, seed: int, *, shuffle: bool = True) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.num_drawn = 0
        self._permutation: tuple[int, list[int]] = (-1, [])  # of one epoch

    def draw(self, num_prompts: int, process_index: int = 0, num_processes: int = 1) -> list[int]:
        """The next `num_prompts` rows for this process, after those of the processes before it."""
        rows = [self._row(self.num_drawn + i) for i in range(num_prompts * num_processes)]
        self.num_drawn += len(rows)
        return rows[process_index * num_prompts : (process_index + 1) * num_prompts]

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, self.num_rows)
        if not self.shuffle:
            return index
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._permutation = (epoch, torch.randperm(self.num_rows, generator=generator).tolist())
        return self._permutation[1][index]


@dataclass
class SamplingTally:
    """Counts of the groups of one generation batch, over all processes."""

    num_groups: int
    rounds: int = 0
    drawn: int = 0
    kept: int = 0
    too_easy: int = 0
    too_hard: int = 0
    accuracies: Counter[str] = field(default_factory=Counter)
    accuracy_sum: float = 0.0
    scored: int = 0

    def count(self, accuracy: Tensor, settings: DynamicSamplingSettings) -> None:
        """Count one round's groups; `accuracy` (groups,) over all processes, NaN where nothing could be scored."""
        low, high = settings.accuracy_low, settings.accuracy_high
        self.rounds += 1
        self.drawn += len(accuracy)
        self.kept += int(keep_mask(accuracy, settings).sum())
        self.too_easy += int((accuracy >= high).sum())
        self.too_hard += len(accuracy) - int((accuracy > low).sum())
        scored = accuracy[~accuracy.isnan()]
        self.accuracy_sum += float(scored.sum())
        self.scored += len(scored)
        self.accuracies.update(f"{value:.2f}" for value in accuracy.tolist())

    def next_draw(self, missing: int, most: int) -> int:
        """Prompts to draw per process for `missing` more groups, if the share kept so far holds."""
        share = max(self.kept / self.drawn, 1 / 8) if self.drawn else 1.0
        return min(most, math.ceil(missing / share))

    def metrics(self) -> dict[str, float]:
        return {
            SAMPLING_GROUPS_DRAWN: self.drawn,
            SAMPLING_GROUPS_KEPT: self.num_groups,
            SAMPLING_GROUPS_TOO_EASY: self.too_easy,
            SAMPLING_GROUPS_TOO_HARD: self.too_hard,
            SAMPLING_GROUPS_CUT: self.kept - self.num_groups,
            SAMPLING_ROUNDS: self.rounds,
            SAMPLING_ACCURACY_DRAWN: self.accuracy_sum / max(1, self.scored),
        }

    def error(self, settings: DynamicSamplingSettings) -> DynamicSamplingError:
        low, high = settings.accuracy_low, settings.accuracy_high
        seen = ", ".join(f"{value}: {number}" for value, number in sorted(self.accuracies.items()))
        return DynamicSamplingError(
            f"After {self.rounds} rounds of dynamic sampling {self.kept} of {self.drawn} groups had a mean accuracy "
            f"inside ({low}, {high}), too few for a batch of {self.num_groups} groups. "
            f"Mean accuracies seen (accuracy: groups): {seen}. "
            "If most are 0, the questions are too hard or the reward cannot read the answers; if most are 1, they are "
            "too easy. Change the data, raise max_sampling_rounds, or set dynamic_sampling=False."
        )


@dataclass(frozen=True)
class DynamicSampler:
    """Rolls out prompts, round after round, until every process has its groups of mixed accuracy.

    Args:
        stream: gives the rows of the dataset.
        settings: which groups are kept.
        collective: the processes that share the stream.
        group_size: rollouts of a prompt.
    """

    stream: PromptStream
    settings: DynamicSamplingSettings
    collective: Collective
    group_size: int

    def sample(
        self, num_groups: int, roll_out: Callable[[list[int]], Batch], accuracy_of: Callable[[Batch], Tensor]
    ) -> tuple[list[Batch], SamplingTally]:
        """Batches that hold `num_groups` groups or more on each process, and the counts.

        Args:
            num_groups: groups for one process.
            roll_out: takes numbers of rows, each repeated for its group, and returns their scored rollouts.
            accuracy_of: the accuracy of each rollout of a batch, (B,), NaN where it could not be scored.

        Raises:
            DynamicSamplingError: the rounds ran out.
        """
        tally = SamplingTally(num_groups * self.collective.world_size)
        kept: list[Batch] = []
        missing = num_groups
        while missing > 0:
            if tally.rounds == self.settings.max_sampling_rounds:
                raise tally.error(self.settings)
            num_prompts = tally.next_draw(missing, most=num_groups)
            drawn = self.stream.draw(num_prompts, self.collective.rank, self.collective.world_size)
            batch = roll_out([row for row in drawn for _ in range(self.group_size)])
            accuracy = accuracy_of(batch).view(-1, self.group_size).nanmean(1)  # (groups,)
            groups = keep_mask(accuracy, self.settings).nonzero().squeeze(1)
            tally.count(self.collective.gather_rows(accuracy), self.settings)
            kept.append(select_rows(batch, list(group_rows(groups, self.group_size))))
            num_kept = sum(len(one["group_ids"]) for one in kept) // self.group_size
            counts = self.collective.gather_rows(torch.tensor([num_kept], device=accuracy.device))
            missing = num_groups - int(counts.min())
        return kept, tally


def keep_mask(accuracy: Tensor, settings: DynamicSamplingSettings) -> Tensor:
    """True for groups whose mean accuracy is strictly between the bounds; NaN never does."""
    return (accuracy > settings.accuracy_low) & (accuracy < settings.accuracy_high)


def group_rows(groups: Tensor, group_size: int) -> Iterator[int]:
    """Row numbers of the given groups of `group_size` neighbouring rows."""
    for group in groups.tolist():
        yield from range(group * group_size, (group + 1) * group_size)
