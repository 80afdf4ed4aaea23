"""Charts that are drawn without a script: their axes and their values."""

import math

PlotValues = list[list[str | float | None]]  # rows of a downloaded chart, the names of its columns first


def tick_step(reach: float, num_ticks: int) -> float:
    """The widest of 1, 2 or 5 times a power of ten that fits at least `num_ticks` times into `reach`, which is > 0."""
    power = 10 ** math.floor(math.log10(reach))
    return next(step * power for step in (5, 2, 1, 0.5, 0.2, 0.1) if num_ticks * step * power <= reach)
