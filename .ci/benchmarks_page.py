#!/usr/bin/env python3
"""Writes the table of tasks in docs/evaluate.md from that of the code: `.venv/bin/python .ci/benchmarks_page.py`."""

import re
from collections.abc import Iterable
from pathlib import Path

from vgpo.evaluation.benchmarks import BENCHMARKS, FURTHER, Benchmark

PAGE = Path(__file__).parents[1] / "docs" / "evaluate.md"
TABLE = re.compile(r"^\| task \|.*\n(?:^\|.*\n)+", re.MULTILINE)
GROUPS = {"math": "math", "vision": "vision", FURTHER: "not in the paper"}


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), BENCHMARKS.values()), encoding="utf-8")


def with_table(page: str, benchmarks: Iterable[Benchmark]) -> str:
    """The page with a new table."""
    rows = [
        "| task | benchmark | group | rows in the paper | default source | PAPO-Eval's split | licence | notes |\n",
        "|---|---|---|---|---|---|---|---|\n",
        *(f"| {' | '.join(cells_of(benchmark))} |\n" for benchmark in benchmarks),
    ]
    return TABLE.sub(lambda match: "".join(rows), page, count=1)


def cells_of(benchmark: Benchmark) -> list[str]:
    """One row of the table."""
    rows = "" if benchmark.group == FURTHER else f"{benchmark.num_rows:,}" if benchmark.num_rows else "unconfirmed"
    cells = [
        f"`{benchmark.name}`",
        benchmark.title,
        GROUPS[benchmark.group],
        rows,
        f"`{benchmark.original}`" if benchmark.original else "none public",
        f"`{benchmark.papo_split}`" if benchmark.papo_split else "",
        benchmark.licence,
        benchmark.notes,
    ]
    return [cell.replace("|", r"\|") for cell in cells]


if __name__ == "__main__":
    main()
