"""Metrics collected between two log lines."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vgpo.metric_names import TIMES
from vgpo.ratio import Ratio
from vgpo.training.collective import Collective


class RunningRatios:
    """Means over all micro-batches and processes since the last log line.

    Sums stay on their device until `flush`, which is the only place that waits for it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, ratios: Mapping[str, Ratio]) -> None:
        for name, ratio in ratios.items():
            pair = torch.stack([ratio.total.float(), ratio.number.float()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def flush(self, collective: Collective) -> dict[str, float]:
        """The means by name; a name that never had anything to count is left out. All processes call it together."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        sums = collective.sum(torch.stack([self.sums[name] for name in names]))
        self.sums.clear()
        return {name: total / number for name, (total, number) in zip(names, sums.tolist(), strict=True) if number}


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each name's numbers, as the parent logs it: without NaN; a name with nothing else is left out."""
    numbers = {name: [value for value in some if not math.isnan(value)] for name, some in values.items()}
    return {name: sum(some) / len(some) for name, some in numbers.items() if some}


class PhaseTimer:
    """Seconds by phase since the last log line, on this process. A phase inside another counts for itself only."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds of finished phases inside the open one

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[name] += elapsed - self._inner
            self._inner = outer + elapsed

    def flush(self, num_steps: int) -> dict[str, float]:
        """Seconds per step, by the metric of the phase."""
        seconds = {TIMES[name]: total / num_steps for name, total in self._seconds.items()}
        self._seconds.clear()
        return seconds
