#!/usr/bin/env python3
"""Writes the tables of docs/metrics.md from `vgpo.training.metric_table`: `.venv/bin/python .ci/metrics_page.py`.

The text around the tables is edited in the page itself.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vgpo.training.metric_table import METRICS, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def main() -> None:
    """Rewrite the page, or exit with a message where its headings are not those of the table."""
    try:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), METRICS), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"{PAGE}: {error}")


def with_tables(page: str, metrics: Mapping[str, Sequence[Metric]]) -> str:
    """The page with a new table in each of its sections.

    Raises:
        ValueError: a section is missing or unknown, or does not have exactly one table.
    """
    intro, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    titles = [section.partition("\n")[0] for section in sections]
    if titles != list(metrics):
        raise ValueError(f"found the headings {titles}, expected those of METRICS: {list(metrics)}; change either")
    for i, title in enumerate(titles):
        tables = TABLE.findall(sections[i])
        if len(tables) != 1:
            raise ValueError(
                f"found {len(tables)} tables under {title!r}, expected 1; put one line that begins with | there"
            )
        sections[i] = sections[i].replace(tables[0], table(metrics[title]))
    return "## ".join([intro, *sections])


def table(metrics: Sequence[Metric]) -> str:
    """A Markdown table; a column is left out where no metric has something in it."""
    columns = {
        "name": [f"`{metric.name}`" for metric in metrics],
        "logged by": [", ".join(f"`{name}`" for name in metric.shapings) for metric in metrics],
        "unit": [metric.unit for metric in metrics],
        "meaning": [metric.meaning for metric in metrics],
        "advice": [metric.advice for metric in metrics],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    head, *rows = (f"| {' | '.join(map(escape, row))} |\n" for row in [columns, *zip(*columns.values(), strict=True)])
    return "".join([head, "|---" * len(columns), "|\n", *rows])


def escape(cell: str) -> str:
    return cell.replace("|", r"\|")


if __name__ == "__main__":
    main()
