"""Statistics of a few seeds, against naive loops, literals and known cases."""

import itertools
import math
import random

import numpy as np
import pytest

from vgpo.study.statistics import (
    bootstrap_interval,
    final_level,
    mean_curve,
    mean_over_seeds,
    paired_difference,
    paired_ratio,
    resample_weights,
    running_mean,
    sign_flip_p_value,
    smallest_p_value,
    smoothing_window,
    steps_to_reach,
)


def naive_means(values: list[float]) -> list[float]:
    """Of all resamples."""
    return [math.fsum(part) / len(part) for part in itertools.product(values, repeat=len(values))]


def naive_p_value(differences: list[float]) -> float:
    observed = abs(math.fsum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(total >= observed - 1e-12 for total in sums) / len(patterns)


@pytest.mark.parametrize("num_values", [2, 3, 5])
def test_the_bootstrap_tries_all_resamples(num_values: int) -> None:
    draw = random.Random(num_values)
    values = [draw.gauss(0, 1) for _ in range(num_values)]
    low, high = bootstrap_interval(np.array(values))
    assert (low, high) == pytest.approx(tuple(np.quantile(naive_means(values), [0.025, 0.975])))


def test_the_bootstrap_of_many_seeds_is_drawn_the_same_each_time() -> None:
    values = np.random.default_rng(3).normal(size=9)
    assert resample_weights(9).shape == (10_000, 9)
    assert resample_weights(9).sum(axis=1) == pytest.approx(1.0)
    low, high = bootstrap_interval(values)
    error = values.std() / 3
    assert values.mean() - 2.5 * error < low < values.mean() - 1.4 * error
    assert values.mean() + 1.4 * error < high < values.mean() + 2.5 * error
    resample_weights.cache_clear()
    assert bootstrap_interval(values) == (low, high)


def test_intervals_by_hand() -> None:
    # Two seeds: the four resample means are 0, 1, 1, 2; quantiles 0.025 and 0.975 lie 7.5 % into the outer gaps.
    found = mean_over_seeds([0.0, 2.0])
    assert found is not None
    assert (found.mean, found.low, found.high, found.num_seeds) == pytest.approx((1.0, 0.075, 1.925, 2))
    single = mean_over_seeds([0.4])
    assert single is not None
    assert (single.mean, single.low, single.high) == (0.4, None, None)
    assert mean_over_seeds([]) is None


def test_equal_seeds_have_no_width() -> None:
    found = mean_over_seeds([0.3] * 4)
    assert found is not None
    assert found.low == pytest.approx(found.high) == pytest.approx(0.3)


@pytest.mark.parametrize("num_pairs", [1, 2, 3, 5, 8])
def test_the_sign_flip_test_against_loops(num_pairs: int) -> None:
    draw = random.Random(num_pairs)
    for shift in (0.0, 0.5, 2.0):
        differences = [draw.gauss(shift, 1) for _ in range(num_pairs)]
        assert sign_flip_p_value(np.array(differences)) == pytest.approx(naive_p_value(differences))


def test_sign_flip_p_values_by_hand() -> None:
    # All of one sign: only the pattern itself and its mirror image are as extreme, 2 / 2^5.
    assert sign_flip_p_value(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 0.0625
    # 1, 2, -4: |sum| 1; the sums are 7, 1, 3, 5 and their mirror images, and none is below 1.
    assert sign_flip_p_value(np.array([1.0, 2.0, -4.0])) == 1.0
    # 3, 3, -1: |sum| 5; 7 and 5 of 7, 5, 1, 1 are not below it.
    assert sign_flip_p_value(np.array([3.0, 3.0, -1.0])) == 0.5
    assert sign_flip_p_value(np.zeros(5)) == 1.0
    # Thirds do not add up exactly: the observed pattern must still count.
    assert sign_flip_p_value(np.array([1 / 3, 0.1, 0.2])) == 0.25


def test_many_pairs_are_flipped_at_random() -> None:
    draw = np.random.default_rng(0)
    differences = draw.normal(size=20)
    # Under no difference the sum is about normal.
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert sign_flip_p_value(differences) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)
    # The observed pattern is one of them: never 0.
    assert 0 < sign_flip_p_value(np.ones(20)) <= 4 / 65_537


def test_no_p_value_is_below_the_smallest() -> None:
    # All of one sign: of 2^16 patterns the observed and its mirror image, of 65,536 drawn ones and itself one or more.
    for num_pairs in (1, 2, 5, 16):
        assert sign_flip_p_value(np.ones(num_pairs)) == smallest_p_value(num_pairs) == 2 / 2**num_pairs
    assert smallest_p_value(17) == smallest_p_value(40) == sign_flip_p_value(np.ones(40)) == 1 / 65_537
    assert sign_flip_p_value(np.ones(17)) >= smallest_p_value(17)


def test_pairs_are_matched_by_seed() -> None:
    values, base = {0: 0.5, 1: 0.7, 7: 0.9}, {7: 0.8, 1: 0.4, 2: 0.1}
    found = paired_difference(values, base)
    assert found is not None
    assert found.mean == pytest.approx((0.3 + 0.1) / 2)
    assert (found.num_pairs, found.p_value, smallest_p_value(2)) == (2, 0.5, 0.5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    five = paired_difference(dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 0.0))
    assert five is not None
    assert five.p_value == smallest_p_value(5) == 0.0625
    ratio = paired_ratio({0: 3.0, 1: 8.0}, {0: 2.0, 1: 4.0, 2: 1.0})
    assert ratio is not None
    assert ratio.mean == pytest.approx(1.75)


@pytest.mark.parametrize(("num_points", "window"), [(1, 1), (4, 1), (14, 1), (16, 2), (100, 10)])
def test_the_window_is_a_tenth(num_points: int, window: int) -> None:
    assert smoothing_window(num_points) == window


def test_running_means_against_a_loop() -> None:
    values = [random.Random(4).random() for _ in range(13)]
    for window in (1, 2, 5, 13):
        expected = [math.fsum(values[i - window + 1 : i + 1]) / window for i in range(window - 1, 13)]
        assert running_mean(values, window) == pytest.approx(expected)


def test_steps_to_reach_a_level() -> None:
    steps = list(range(5, 105, 5))  # 20 points, window 2
    values = [0.0, 1.0, *[0.0] * 8, *[0.6] * 10]
    # A single high point does not count: its mean with the one before is 0.5.
    assert steps_to_reach(steps, values, 0.55) == steps[11]
    assert steps_to_reach(steps, values, 0.5) == steps[1]
    assert steps_to_reach(steps, values, 0.61) is None
    assert steps_to_reach([], [], 0.5) is None
    assert final_level([0.0] * 18 + [0.4, 0.6]) == pytest.approx(0.5)
    assert final_level([]) is None


def test_the_base_reaches_its_own_final_level() -> None:
    values = [i / 40 for i in range(40)]
    level = final_level(values)
    assert level is not None
    assert steps_to_reach(list(range(1, 41)), values, level) == 40


def test_curves_are_means_over_seeds_at_common_steps() -> None:
    runs = [{1: 1.0, 2: 2.0, 3: 9.0}, {2: 4.0, 1: 3.0}]
    curve = mean_curve(runs)
    assert curve is not None
    assert curve.steps == [1, 2]
    assert curve.values == pytest.approx([2.0, 3.0])
    # As by hand for two seeds: 7.5 % into the gap beyond the outer resample means.
    assert curve.low == pytest.approx([1.075, 2.075])
    assert curve.high == pytest.approx([2.925, 3.925])
    assert mean_curve([]) is None
    assert mean_curve([{1: 1.0}, {2: 1.0}]) is None
    single = mean_curve(runs[:1])
    assert single is not None
    assert (single.low, single.high) == (None, None)


def test_long_curves_are_smoothed() -> None:
    run = {step: float(step) for step in range(1, 31)}  # window 3
    curve = mean_curve([run, run])
    assert curve is not None
    assert curve.steps == list(range(3, 31))
    assert curve.values == pytest.approx([step - 1.0 for step in range(3, 31)])
