"""Logged metrics without a chart of their own, which the page draws on demand."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vgpo.pages.texts import truncate
from vgpo.report.lines import draw_line, with_nan
from vgpo.training.metric_table import METRICS, Metric

MAX_NAME_CHARACTERS = 200
MAX_POINTS = 200  # per line: a page has many of them
TABLE = {metric.name: metric for part in METRICS.values() for metric in part}


def other_metrics(metrics: Sequence[Sequence[Mapping[str, Any]]], charted: Collection[str]) -> dict[str, Any]:
    """Collect all numbers that were logged, apart from those of `charted`.

    Args:
        metrics: The metrics lines of each run.
        charted: Names of metrics that have a chart.

    Returns:
        dict: `charts`, by name, as those of `report_data`, in which `steps` of a line is a place in the list `steps`:
        most metrics are logged at the same steps.
    """
    logged = [[with_nan(line) for line in lines] for lines in metrics]
    steps: dict[tuple[float, ...], int] = {}

    def line_of(name: str, run: int) -> dict[str, Any]:
        line = draw_line(lambda values: values.get(name), run, logged[run], MAX_POINTS)
        return {**line, "steps": steps.setdefault(tuple(line["steps"]), len(steps))}

    charts = []
    for name in sorted(numbers_of(metrics) - {"step", *charted}):
        series = [line_of(name, run) for run, lines in enumerate(logged) if any(name in line for line in lines)]
        series = [line for line in series if any(value is not None for value in line["values"])]
        if series:
            charts.append({**heading(name), "digits": digits_of(series), "from_zero": False, "series": series})
    return {"steps": [list(one) for one in steps], "charts": charts}


def numbers_of(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> set[str]:
    """Names of the metrics that are numbers."""
    return {
        name
        for lines in metrics
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def heading(name: str) -> dict[str, str]:
    """Title, caption and unit of a metric's chart, as far as vgpo knows it."""
    known: Metric | None = TABLE.get(name) or TABLE.get(name.rpartition("/")[0])  # a stratum follows after a slash
    unit, caption = (known.unit, known.meaning.replace("`", "")) if known else ("", "")
    shown = truncate(name, MAX_NAME_CHARACTERS)
    return {"id": shown, "title": shown, "caption": caption, "unit": unit}


def digits_of(series: Sequence[Mapping[str, Any]]) -> int:
    """Decimals under the chart: fewer for large numbers."""
    largest = max(abs(value) for line in series for value in line["values"] if value is not None)
    return 0 if largest >= 1000 else 1 if largest >= 100 else 3
