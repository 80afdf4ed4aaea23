"""The page about evaluation: its table of tasks is that of the code."""

import runpy
from pathlib import Path

from vgpo.evaluation.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[2]
PROGRAM = runpy.run_path(str(ROOT / ".ci" / "benchmarks_page.py"))


def test_the_page_has_the_table_of_the_code() -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert PROGRAM["with_table"](page, BENCHMARKS.values()) == page, "run .ci/benchmarks_page.py"
    assert all(f"| `{name}` |" in page for name in BENCHMARKS)
