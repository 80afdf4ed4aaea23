"""Dynamic sampling (DAPO, arXiv 2503.14476): only groups of mixed accuracy are trained on."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


class DynamicSamplingError(RuntimeError):
    """The rounds ran out before the batch was full."""


class PromptStream:
    """Endless, seeded stream of dataset rows: each epoch a new permutation, no row twice within one.

    Every process holds the same stream and takes its own share of each draw, so no message is needed.
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
        epoch, place = divmod(position, self.num_rows)
        if not self.shuffle:
            return place
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._permutation = (epoch, torch.randperm(self.num_rows, generator=generator).tolist())
        return self._permutation[1][place]


@dataclass
class SamplingTally:
    """What happened to the groups of one generation batch, over all processes."""

    wanted: int
    rounds: int = 0
    drawn: int = 0
    kept: int = 0
    too_easy: int = 0
    too_hard: int = 0
    accuracies: Counter[str] = field(default_factory=Counter)
    accuracy_sum: float = 0.0
    scored: int = 0

    def count(self, accuracy: Tensor, low: float, high: float) -> None:
        """Count one round's groups; `accuracy` (groups,) over all processes, NaN where nothing could be scored."""
        self.rounds += 1
        self.drawn += len(accuracy)
        self.kept += int(keep_mask(accuracy, low, high).sum())
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
            "sampling/groups_drawn": self.drawn,
            "sampling/groups_kept": self.wanted,
            "sampling/groups_too_easy": self.too_easy,
            "sampling/groups_too_hard": self.too_hard,
            "sampling/groups_cut": self.kept - self.wanted,
            "sampling/rounds": self.rounds,
            "sampling/accuracy_drawn": self.accuracy_sum / max(1, self.scored),
        }

    def error(self, low: float, high: float) -> DynamicSamplingError:
        seen = ", ".join(f"{value}: {number}" for value, number in sorted(self.accuracies.items()))
        return DynamicSamplingError(
            f"After {self.rounds} rounds of dynamic sampling {self.kept} of {self.drawn} groups had a mean accuracy "
            f"inside ({low}, {high}), too few for a batch of {self.wanted} groups. "
            f"Mean accuracies seen (accuracy: groups): {seen}. "
            "If most are 0, the questions are too hard or the reward cannot read the answers; if most are 1, they are "
            "too easy. Change the data, raise max_sampling_rounds, or set dynamic_sampling=False."
        )


def keep_mask(accuracy: Tensor, low: float, high: float) -> Tensor:
    """True for groups whose mean accuracy lies strictly inside (low, high); NaN never does."""
    return (accuracy > low) & (accuracy < high)


def group_rows(groups: Tensor, group_size: int) -> Iterator[int]:
    """Row numbers of the given groups of `group_size` neighbouring rows."""
    for group in groups.tolist():
        yield from range(group * group_size, (group + 1) * group_size)
