"""Scores of benchmarks as a terminal table, as JSON and as CSV; each names the protocol."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from vgpo.evaluation.benchmarks import FURTHER, MATH, VISION
from vgpo.evaluation.scores import Average, Scores, SuiteScores, TaskScores
from vgpo.terminal import right
from vgpo.text import visible

HEADINGS = {MATH: "Math", VISION: "Vision", FURTHER: "Further"}
# In two lines, so that the table fits into 80 columns.
COLUMNS = ("correct\n%", "95 %\ninterval", "SE", "n", "drop-\nped", "over-\nsized", "trun-\ncated", "no\nbox")
MISSING = "-"
CSV_FIELDS = (
    "protocol", "task", "category", "group", "accuracy", "standard_error", "low", "high", "num_rows", "num_scored",
    "num_asked", "num_dropped", "num_oversized", "num_samples", "num_correct", "num_truncated", "num_no_box",
    "num_clusters", "num_expected", "is_partial", "missing", "partial",
)  # fmt: skip


def suite_table(scores: SuiteScores, protocol: str) -> Table:
    """One row per task, by group, and one per average.

    `n` is the number of rows of a task or tasks of an average, with the complete number if some are missing. An
    average is marked as partial, and is not the paper's, if a task or some of its rows are missing.
    """
    table = Table(
        Column("task", no_wrap=True),
        *map(right, COLUMNS),
        title=f"Protocol: {escape(visible(protocol))}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    for group, heading in HEADINGS.items():
        tasks = [task for task in scores.tasks if task.group == group]
        if tasks:
            table.add_row(f"[bold]{heading}")
        for number, task in enumerate(tasks, start=1):
            table.add_row(*_cells(task), end_section=number == len(tasks))
    for average in scores.averages:
        table.add_row(*_average_cells(average))
    return table


def suite_record(scores: SuiteScores, protocol: str) -> dict[str, Any]:
    """JSON-serialisable: `protocol`, `tasks` and `averages`, as lists of records that also name the protocol.

    Accuracies, errors and intervals are shares in [0, 1]. A task has `categories`, by name.
    """
    return {
        "protocol": protocol,
        "tasks": [_task_record(task, protocol) for task in scores.tasks],
        "averages": [_average_record(average, protocol) for average in scores.averages],
    }


def suite_csv(scores: SuiteScores, protocol: str) -> str:
    """CSV with one row per task, followed by one per category, and one row per average, with `CSV_FIELDS`.

    Shares are in [0, 1]; fields that do not apply are empty; lists are joined by blanks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in _csv_rows(scores, protocol):
        writer.writerow({name: _csv_cell(value) for name, value in row.items()})
    return text.getvalue()


def percent(share: float | None) -> str:
    """A share in percent with one decimal place, without the sign."""
    return MISSING if share is None else f"{100 * share:.1f}"


def _cells(task: TaskScores) -> list[str]:
    counts = (task.num_dropped, task.num_oversized, task.num_truncated, task.num_no_box)
    return [
        f" {task.title}",
        percent(task.accuracy),
        f"{percent(task.low)} to {percent(task.high)}",
        percent(task.standard_error),
        _part_of(task.num_scored, task.num_expected or task.num_rows),
        *(f"{count:,}" for count in counts),
    ]


def _average_cells(average: Average) -> list[str]:
    name = f"{average.name}, partial" if average.is_partial else average.name
    number = _part_of(average.num_tasks, average.num_tasks + len(average.missing))
    return [name, percent(average.accuracy), "", percent(average.standard_error), number]


def _part_of(number: int, everything: int) -> str:
    return f"{number:,}" if number == everything else f"{number:,}/{everything:,}"


def _scores_record(scores: Scores) -> dict[str, Any]:
    return {**asdict(scores), "num_scored": scores.num_scored, "is_limited": scores.is_limited}


def _task_record(task: TaskScores, protocol: str) -> dict[str, Any]:
    categories = {name: _scores_record(scores) for name, scores in task.categories.items()}
    return {
        "protocol": protocol,
        **_scores_record(task),
        "is_partial": task.is_partial,
        "categories": categories,
    }


def _average_record(average: Average, protocol: str) -> dict[str, Any]:
    return {"protocol": protocol, **asdict(average), "is_partial": average.is_partial}


def _csv_rows(scores: SuiteScores, protocol: str) -> Iterator[dict[str, Any]]:
    for task in scores.tasks:
        record = _task_record(task, protocol)
        shared = {name: record[name] for name in ("protocol", "task", "group", "is_partial")}
        yield record
        for name, category in record["categories"].items():
            yield {**category, **shared, "category": visible(name)}
    for average in scores.averages:
        yield {**_average_record(average, protocol), "task": average.name}


def _csv_cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list | tuple) else value
