"""The table of tested versions, and the program that writes its rows."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
PAGE = """| environment | date | commit | Python | passed |
|---|---|---|---|---|
| newest | 2026-01-01 | aaaaaaa | 3.11.7 | 1 |
| newest | 2026-01-01 | aaaaaaa | 3.13.0 | 2 |

Text | with a bar.
"""


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "test_environment.py")))


def test_a_row_replaces_that_of_its_environment_and_python(program: SimpleNamespace) -> None:
    page = program.with_row(PAGE, ["newest", "2026-02-02", "bbbbbbb", "3.11.9", "3"])
    assert page == PAGE.replace(
        "| newest | 2026-01-01 | aaaaaaa | 3.11.7 | 1 |", "| newest | 2026-02-02 | bbbbbbb | 3.11.9 | 3 |"
    )


def test_a_row_of_a_new_environment_is_added(program: SimpleNamespace) -> None:
    page = program.with_row(PAGE, ["wheel", "2026-02-02", "bbbbbbb", "3.11.9", "3"])
    assert page.splitlines()[4] == "| wheel | 2026-02-02 | bbbbbbb | 3.11.9 | 3 |"
    assert len(page.splitlines()) == len(PAGE.splitlines()) + 1


def test_a_second_row_of_any_environment_replaces_the_first(program: SimpleNamespace) -> None:
    page = PAGE
    for environment in ("all", *program.ENVIRONMENTS):
        for passed in ("8", "9"):
            page = program.with_row(page, [environment, "2026-02-02", "bbbbbbb", "3.12.9", passed])
    assert page.count("| 3.12.9 | 9 |") == 1 + len(program.ENVIRONMENTS)
    assert "| 3.12.9 | 8 |" not in page


def test_the_page_has_the_columns_that_the_program_writes(program: SimpleNamespace) -> None:
    page = (ROOT / "docs" / "tested_versions.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| environment"))
    names = [cell.strip().lower() for cell in header.strip("|").split("|")]
    assert names[3:-3] == ["python", *program.LISTED]


def test_every_dependency_has_a_lower_bound(program: SimpleNamespace) -> None:
    assert "trl==1.16.0" in program.lower_bounds()
