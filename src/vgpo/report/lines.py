"""Lines of a chart: what a run logged of a metric, by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_POINTS = 400  # per line; longer ones are averaged

Read = Callable[[Mapping[str, Any]], float | None]


def draw_line(
    read: Read, run: int, lines: Sequence[Mapping[str, Any]], max_points: int = MAX_POINTS
) -> dict[str, Any]:
    """Return the points of one run; more than `max_points` of them are averaged in stretches of equal length."""
    points = [(line["step"], value) for line in lines if (value := read(line)) is not None]
    stretch = math.ceil(len(points) / max_points) or 1
    stretches = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return {
        "run": run,
        "steps": [part[(len(part) - 1) // 2][0] for part in stretches],
        "values": [finite_mean([value for _, value in part]) for part in stretches],
        "averaged": stretch,
    }


def with_nan(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A metrics line with its nonfinite values, which JSON stores as null."""
    if None not in line.values():
        return line
    return {key: math.nan if value is None else value for key, value in line.items()}


def finite_mean(values: Sequence[float]) -> float | None:
    """With five digits; None if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return float(f"{sum(finite) / len(finite):.5g}") if finite else None
