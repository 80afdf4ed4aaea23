"""Deterministic bootstrap: resamples and percentile intervals."""

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 10_000
SEED = 0
MAX_PLACES = 2**20  # drawn at once; 8 MB


def resamples(num_values: int, stream: int = 0) -> Iterator[np.ndarray]:
    """Draw n of n values with replacement, 10,000 times.

    Args:
        num_values: n, at least 1.
        stream: Resamples of one stream are independent of those of another.

    Yields:
        Indices of the resampled values, (some, n), in blocks of at most 8 MB.
    """
    draw = np.random.default_rng([SEED, stream] if stream else SEED)
    step = max(1, MAX_PLACES // num_values)
    for start in range(0, NUM_RESAMPLES, step):
        yield draw.integers(num_values, size=(min(step, NUM_RESAMPLES - start), num_values))


def percentile_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5 % and 97.5 % quantiles over the first axis: the bounds of the percentile bootstrap, (...) each.

    Args:
        resampled: The figure in each resample, (R, ...).
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values (n,), n at least 1: percentile bootstrap."""
    means = np.concatenate([values[places].mean(axis=1) for places in resamples(len(values))])
    low, high = percentile_interval(means)
    return float(low), float(high)
