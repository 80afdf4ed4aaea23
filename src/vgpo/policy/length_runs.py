"""Group rows by length to minimise padding."""

from collections.abc import Sequence
from itertools import pairwise

MAX_RUNS = 8
# Cost of an additional model call, in tokens of a row: each call reads all weights and adds to all gradients. Measured
# on CPUs with 17 million parameters (22 to 25); estimated for GPUs from bandwidth and arithmetic.
CALL_COST = {"cpu": 32, "cuda": 256}


def best_runs(lengths: Sequence[int], cost: int) -> int:
    """The number of runs of similar length that minimises the time.

    Args:
        lengths: tokens of each row.
        cost: cost of a run, in tokens.
    """
    totals = [_padded(lengths, runs) + cost * len(runs) for runs in _all_cuts(lengths)]
    return 1 + totals.index(min(totals))


def runs_by_length(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split rows into `count` runs of similar length with minimal padding.

    Args:
        lengths: tokens of each of n rows.
        count: number of runs; at most n are created.

    Returns:
        The row numbers of each run, in ascending order.
    """
    return _all_cuts(lengths)[min(count, MAX_RUNS, len(lengths)) - 1]


def _all_cuts(lengths: Sequence[int]) -> list[list[list[int]]]:
    """The best split into 1, 2, ... runs of the rows, sorted by descending length."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    n = len(order)
    # For the first `end` rows: tokens with padding, and the start of each run.
    best: list[tuple[int, tuple[int, ...]]] = [(lengths[order[0]] * end, (0,)) for end in range(n + 1)]
    cuts = []
    for count in range(1, min(MAX_RUNS, n) + 1):
        if count > 1:
            best = [
                min(
                    (best[start][0] + lengths[order[start]] * (end - start), (*best[start][1], start))
                    for start in range(count - 1, max(end, count))
                )
                for end in range(n + 1)
            ]
        cuts.append([sorted(order[first:end]) for first, end in pairwise((*best[n][1], n))])
    return cuts


def _padded(lengths: Sequence[int], runs: Sequence[Sequence[int]]) -> int:
    return sum(len(run) * max(lengths[row] for row in run) for run in runs)
