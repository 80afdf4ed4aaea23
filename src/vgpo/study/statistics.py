"""Statistics over a few seeds: means with intervals, paired differences, and steps to reach a level.

Uses only NumPy. Everything is deterministic: resamples are enumerated if possible, otherwise sampled with a fixed
seed. None of it corrects for the number of methods that are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vgpo.resampling import SEED, percentile_interval, resamples

MAX_ENUMERATED_RESAMPLES = 5_000  # 5^5 = 3,125 resamples of five seeds
MAX_ENUMERATED_FLIPS = 2**16
# Two sums of the same numbers in another order are the same sum.
TOLERANCE = 1e-12
SMOOTHED_SHARE = 0.1


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval; `low` and `high` are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True)
class Difference:
    """A mean difference to the base over the seeds that both have.

    Attributes:
        mean: Mean over seeds of (value - base's value of the same seed).
        low, high: Its 95 % interval, None for a single pair.
        p_value: Of the exact two-sided sign-flip test, in (0, 1].
        num_pairs: Seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float
    num_pairs: int


@dataclass(frozen=True)
class Curve:
    """A mean curve with the band of its 95 % intervals, all of the length of `steps`.

    The bounds are None for a single seed.
    """

    steps: list[int]
    values: list[float]
    low: list[float] | None
    high: list[float] | None


@lru_cache(maxsize=8)
def resample_weights(num_values: int) -> np.ndarray:
    """How often each of n values is in a bootstrap resample, as shares (R, n).

    All n^n resamples for up to 5 values, else 10,000 drawn ones.
    """
    if num_values**num_values <= MAX_ENUMERATED_RESAMPLES:
        chosen = np.indices((num_values,) * num_values).reshape(num_values, -1).T
    else:
        chosen = np.concatenate(list(resamples(num_values)))
    return (chosen[:, :, None] == np.arange(num_values)).mean(axis=1)


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of the mean at 95 %: the 2.5 % and 97.5 % quantiles of the means of resamples.

    With few seeds it is too narrow rather than too wide: the intervals of five normal values hold the true mean about
    five times in six.

    Args:
        values: (n, ...), n at least 2; the mean is over the first axis.

    Returns:
        The bounds, (...) each.
    """
    return percentile_interval(resample_weights(len(values)) @ values)


def mean_over_seeds(values: Sequence[float]) -> Mean | None:
    """The mean of one figure a seed, None if there is no seed."""
    if not values:
        return None
    array = np.array(values, dtype=float)
    if len(array) == 1:
        return Mean(float(array[0]), None, None, 1)
    low, high = bootstrap_interval(array)
    return Mean(float(array.mean()), float(low), float(high), len(array))


def paired_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Compare figures by seed with the base's; None if no seed has both.

    Args:
        values: seed -> figure.
        base: seed -> figure of the base.
    """
    seeds = sorted(values.keys() & base.keys())
    found = mean_over_seeds([values[seed] - base[seed] for seed in seeds])
    if found is None:
        return None
    differences = np.array([values[seed] - base[seed] for seed in seeds])
    return Difference(
        mean=found.mean,
        low=found.low,
        high=found.high,
        p_value=sign_flip_p_value(differences),
        num_pairs=len(seeds),
    )


def paired_ratio(values: Mapping[int, float], base: Mapping[int, float]) -> Mean | None:
    """The mean over seeds of value / base's value of the same seed; None if no seed has both."""
    return mean_over_seeds([values[seed] / base[seed] for seed in sorted(values.keys() & base.keys()) if base[seed]])


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Two-sided permutation test of a mean of 0: the share of sign patterns whose |mean| is not below the observed.

    If method and base were the same, each difference (n,) could as well have had the other sign. All 2^n patterns are
    tried for up to 16 differences, else 65,536 drawn ones and the observed. Five seeds cannot give less than
    2 / 2^5 = 0.0625.
    """
    num_pairs = len(differences)
    if 2**num_pairs <= MAX_ENUMERATED_FLIPS:
        signs = 1 - 2 * (np.arange(2**num_pairs)[:, None] >> np.arange(num_pairs) & 1)  # (2^n, n)
    else:
        drawn = np.random.default_rng(SEED).integers(2, size=(MAX_ENUMERATED_FLIPS, num_pairs))
        signs = np.concatenate([np.ones((1, num_pairs), dtype=int), 1 - 2 * drawn])
    sums = np.abs(signs @ differences)
    observed = abs(differences.sum())
    return float((sums >= observed - TOLERANCE * np.abs(differences).sum()).mean())


def smallest_p_value(num_pairs: int) -> float:
    """The lower bound of `sign_flip_p_value`."""
    if 2**num_pairs > MAX_ENUMERATED_FLIPS:
        return 1 / (MAX_ENUMERATED_FLIPS + 1)
    return min(1.0, 2.0 ** (1 - num_pairs))


def smoothing_window(num_points: int) -> int:
    """Points in a running mean: a tenth of the run, at least 1."""
    return max(1, round(SMOOTHED_SHARE * num_points))


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The mean of each value and the `window` - 1 before it, from value number `window` on; (n - window + 1,)."""
    return np.lib.stride_tricks.sliding_window_view(np.array(values, dtype=float), window).mean(axis=1)


def steps_to_reach(steps: Sequence[int], values: Sequence[float], target: float) -> int | None:
    """The first step at which the running mean over a tenth of the run is at `target` or above, None if it never is.

    Args:
        steps: logged steps, ascending (n,).
        values: the figure at each of them (n,).
    """
    window = smoothing_window(len(values))
    if len(values) < window:
        return None
    reached = np.flatnonzero(running_mean(values, window) >= target - TOLERANCE)
    return steps[window - 1 + int(reached[0])] if len(reached) else None


def final_level(values: Sequence[float]) -> float | None:
    """The running mean over a tenth of the run at its last step, None for a run without a value."""
    return float(np.mean(values[-smoothing_window(len(values)) :])) if values else None


def mean_curve(runs: Sequence[Mapping[int, float]]) -> Curve | None:
    """The mean over seeds of running means over a tenth of the run, at the steps that all runs have.

    Args:
        runs: step -> value, one mapping a seed.

    Returns:
        None if no step is common to all.
    """
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not steps:
        return None
    window = smoothing_window(len(steps))
    curves = np.stack([running_mean([run[step] for step in steps], window) for run in runs])  # (seeds, steps)
    low, high = bootstrap_interval(curves) if len(runs) > 1 else (None, None)
    return Curve(
        steps=steps[window - 1 :],
        values=curves.mean(axis=0).tolist(),
        low=None if low is None else low.tolist(),
        high=None if high is None else high.tolist(),
    )
