"""Rows cut into runs of similar length, against every cut that there is."""

import itertools
import random

import pytest

from vgpo.policy.length_runs import MAX_RUNS, best_runs, runs_by_length


def padded(lengths: list[int], runs: list[list[int]]) -> int:
    return sum(len(run) * max(lengths[row] for row in run) for run in runs)


def least_padded(lengths: list[int], count: int) -> int:
    order, n = sorted(range(len(lengths)), key=lambda row: -lengths[row]), len(lengths)
    cuts = itertools.combinations(range(1, n), count - 1)
    return min(padded(lengths, [order[a:b] for a, b in itertools.pairwise((0, *cut, n))]) for cut in cuts)


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_has_less_padding(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(draw.randint(1, 7))]
    for count in range(1, len(lengths) + 1):
        runs = runs_by_length(lengths, count)
        assert sorted(row for run in runs for row in run) == list(range(len(lengths)))
        assert all(run == sorted(run) for run in runs)
        assert len(runs) == count
        assert padded(lengths, runs) == least_padded(lengths, count)


def test_one_run_keeps_the_order_of_rows() -> None:
    assert runs_by_length([3, 9, 1], 1) == [[0, 1, 2]]


def test_there_are_no_more_runs_than_rows_or_than_allowed() -> None:
    assert len(runs_by_length([4, 2], 5)) == 2
    assert len(runs_by_length(list(range(1, 40)), 39)) == MAX_RUNS


def test_a_run_must_save_what_it_costs() -> None:
    lengths = [10, 10, 2, 2]  # two runs save 16 tokens
    assert best_runs(lengths, cost=15) == 2
    assert best_runs(lengths, cost=17) == 1
    assert best_runs([7, 7, 7], cost=0) == 1
