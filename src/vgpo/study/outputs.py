"""Outputs of a study: terminal tables, rows as CSV and JSON, and the page."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vgpo.run.storage import to_json, write_file
from vgpo.study.page import render_study
from vgpo.study.results import INITIAL, NOTES, GroundingColumn
from vgpo.study.statistics import smallest_p_value
from vgpo.text import visible

NONE = "–"
MINUS = "\N{MINUS SIGN}"
Cells = tuple[list[str], list[list[str]]]


def write_outputs(out: Path, data: Mapping[str, Any]) -> dict[str, Path]:
    """Write all outputs of the dict from `vgpo.study.results.study_data`; each file atomically.

    Returns:
        What each file is -> its path.

    Raises:
        RunFolderError: Writing failed.
    """
    files = {
        "table": (out / "table.md", markdown(data)),
        "rows": (out / "runs.csv", rows_as_csv(data["rows"])),
        "steps": (out / "curves.csv", rows_as_csv(data["curves"])),
        "rows as JSON": (out / "runs.json", to_json(data["rows"], indent=1).decode("ascii") + "\n"),
        "all that the page shows": (out / "study.json", to_json(data, indent=1).decode("ascii") + "\n"),
        "page": (out / "report.html", render_study(data)),
    }
    for path, text in files.values():
        write_file(path, text.encode("utf-8"))
    return {what: path for what, (path, _) in files.items()}


def rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row with all columns, numbers with six digits; empty for missing values."""
    names = dict.fromkeys(name for row in rows for name in row)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell(row.get(name)) for name in names] for row in rows)
    return file.getvalue()


def cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def markdown(data: Mapping[str, Any]) -> str:
    """The tables of all comparisons and settings, with how to read them."""
    parts = [f"# {escaped(data['name'])}", *NOTES.values(), *data["cautions"]]
    for comparison in data["comparisons"]:
        parts += [f"## {escaped(comparison['name'])}", *questions(comparison)]
        for setting in comparison["settings"]:
            parts.append(f"### {escaped(setting['name'])}")
            cells = comparison_cells(setting, len(comparison["seeds"])), grounding_cells(setting)
            parts += [markdown_table(*table) for table in cells]
            parts += [missing_note(setting)] if setting["missing"] else []
    return "\n\n".join(parts) + "\n"


def questions(comparison: Mapping[str, Any]) -> list[str]:
    """The question of a comparison, and what its seeds can show."""
    seeds = comparison["seeds"]
    limits = (
        f"Base {escaped(comparison['base'])}; seeds {', '.join(map(str, seeds))}, with which p cannot be below "
        f"{smallest_p_value(len(seeds)):.4g}."
    )
    return [*([escaped(comparison["question"])] if comparison["question"] else []), limits]


def comparison_cells(setting: Mapping[str, Any], num_seeds: int) -> Cells:
    """The first table of a setting: accuracy and cost."""
    head = ["method", "seeds", "held-out, %", "difference, points", "p", "learning, points", "p", "steps", "step time",
            "CPU time", "tokens", "memory", "roughness"]  # fmt: skip
    rows = []
    for method in setting["methods"]:
        steps = method["steps_to_base"]
        reached = f" ({steps['num_reached']} of {method['num_runs']})"
        rows.append(
            [
                method["name"],
                str(method["num_runs"]),
                interval(method["accuracy"], 1, 100),
                *(
                    text
                    for change in (method["difference"], method["learning"])
                    for text in (interval(change, 1, 100, signed=True), p_value(change, num_seeds))
                ),
                (NONE if steps["mean"] is None else f"{steps['mean']:.0f}") + reached,
                *(interval(method[name], 2) for name in ("step_time", "cpu_time", "tokens", "memory", "roughness")),
            ]
        )
    return head, rows


def grounding_cells(setting: Mapping[str, Any]) -> Cells:
    """The second table: visual grounding."""
    columns = [GroundingColumn(**one) for one in setting["columns"]]
    lines = [(method["name"], method["looks"]) for method in setting["methods"]]
    if setting["start"]:
        start = {column.column: {"mean": setting["start"].get(column.column)} for column in columns}
        lines.insert(0, (INITIAL, start))
    rows = [
        [name, *(interval(means[column.column], column.digits, column.factor) for column in columns)]
        for name, means in lines
    ]
    return ["method", *(column.heading for column in columns)], rows


def p_value(change: Mapping[str, Any] | None, num_seeds: int) -> str:
    """The figure, with the number of pairs where runs are missing."""
    if change is None:
        return NONE
    pairs = "" if change["num_pairs"] == num_seeds else f" ({change['num_pairs']} pairs)"
    return f"{change['p_value']:.3g}{pairs}"


def interval(found: Mapping[str, Any] | None, digits: int, factor: float = 1, *, signed: bool = False) -> str:
    """`mean [low, high]`, without brackets for a single seed."""
    if found is None or found["mean"] is None:
        return NONE
    sign = "+" if signed else ""
    mean, *bounds = (
        f"{factor * value:{sign}.{digits}f}".replace("-", MINUS)
        for value in (found["mean"], found.get("low"), found.get("high"))
        if value is not None
    )
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def missing_note(setting: Mapping[str, Any]) -> str:
    """The missing runs of a setting."""
    parts = [f"{escaped(one['method'])} (seed {', '.join(map(str, one['seeds']))})" for one in setting["missing"]]
    return f"Not done: {'; '.join(parts)}."


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(escaped(cell) for cell in line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text escaped for a table cell."""
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def terminal_tables(data: Mapping[str, Any]) -> list[Table | Text]:
    """The tables of all comparisons and settings for a terminal."""
    found: list[Table | Text] = []
    for comparison in data["comparisons"]:
        for setting in comparison["settings"]:
            place = f"{comparison['name']}, {setting['name']}"
            cells = comparison_cells(setting, len(comparison["seeds"]))
            found.append(terminal_table(f"{place}: against {comparison['base']}", *cells))
            found.append(terminal_table(f"{place}: visual grounding", *grounding_cells(setting)))
            found += [Text(missing_note(setting))] if setting["missing"] else []
    return found


def terminal_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=visible(title), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(visible(text)) for text in row))
    return table
