"""Rows of unlike lengths, ordered and cut so that little of what a model reads is padding."""

from collections.abc import Sequence
from itertools import pairwise

MAX_RUNS = 8
# What a further model call costs, in tokens of a row: each call reads all weights and adds to all gradients. Measured
# on CPUs with 17 million parameters (22 to 25); on a GPU estimated from its bandwidth and its arithmetic.
CALL_COST = {"cpu": 32, "cuda": 256}


def best_runs(lengths: Sequence[int], cost: int) -> int:
    """In how many runs of similar length rows are read in the least time.

    Args:
        lengths: tokens of each row.
        cost: of a run, in tokens.
    """
    totals = [_padded(lengths, runs) + cost * len(runs) for runs in _all_cuts(lengths)]
    return 1 + totals.index(min(totals))


def runs_by_length(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Rows in `count` runs of similar length, with as little padding as so many runs allow.

    Args:
        lengths: tokens of each of n rows.
        count: of the runs; at most n are made.

    Returns:
        The rows of each run, by their number, in ascending order.
    """
    return _all_cuts(lengths)[min(count, MAX_RUNS, len(lengths)) - 1]


def _all_cuts(lengths: Sequence[int]) -> list[list[list[int]]]:
    """The best cut into 1, 2, ... runs of the rows in descending order of length."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    n = len(order)
    # Of the first `end` rows: tokens with padding, and where each run begins.
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
