"""The page of metrics, and the program that writes its tables."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgpo.training.metric_table import METRICS, Metric

ROOT = Path(__file__).parents[2]
PAGE = """# Metrics

A | in the text.

## Focus

Above.

| old |
|---|

Below.

## Time

|
"""
METRIC = Metric(name="focus/x", unit="share", meaning="|x − 1|")


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "metrics_page.py")))


def test_the_page_is_what_the_table_gives(program: SimpleNamespace) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert program.with_tables(page, METRICS) == page, "run .venv/bin/python .ci/metrics_page.py"


def test_only_the_tables_are_replaced(program: SimpleNamespace) -> None:
    written = program.with_tables(PAGE, {"Focus": [METRIC], "Time": [METRIC]})
    table = "| name | unit | meaning |\n|---|---|---|\n| `focus/x` | share | \\|x − 1\\| |\n"
    assert written == PAGE.replace("| old |\n|---|\n", table).replace("Time\n\n|\n", f"Time\n\n{table}")


def test_a_section_of_the_table_that_the_page_has_not_is_an_error(program: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"found the headings \['Focus', 'Time'\], expected .*\['Focus'\]"):
        program.with_tables(PAGE, {"Focus": [METRIC]})


def test_a_section_without_a_place_for_its_table_is_an_error(program: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="found 0 tables under 'Time', expected 1"):
        program.with_tables(PAGE.removesuffix("|\n"), {"Focus": [METRIC], "Time": [METRIC]})
