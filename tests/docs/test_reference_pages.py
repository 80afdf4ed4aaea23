"""The pages of recipe fields and of commands are those that the program writes."""

import runpy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgpo.recipe.parsing import field_names
from vgpo.recipe.recipe import RECIPE_PARTS

ROOT = Path(__file__).parents[2]
FIX = "run .venv/bin/python .ci/reference_pages.py"


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "reference_pages.py")))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_page_of_fields_is_up_to_date(program: SimpleNamespace) -> None:
    found, expected = page("recipe_fields.md"), program.fields_page()
    assert program.without_upstream(found) == program.without_upstream(expected), FIX
    # Other versions of TRL and transformers have other fields: `make test-oldest` and `make test-newest`.
    if program.versions_of(found) == {name: version(name) for name in program.LIBRARIES}:
        assert found == expected, FIX
        assert all(f"| `{name}` |" in found for name in field_names(RECIPE_PARTS))


def test_every_field_of_vgpo_is_described(program: SimpleNamespace) -> None:
    for kind in (program.RunArguments, program.MethodArguments):
        assert [field.name for field in program.fields_of(kind) if not field.metadata.get("help")] == []


def test_the_page_of_commands_is_up_to_date(program: SimpleNamespace) -> None:
    assert page("cli.md") == program.cli_page(), FIX


def test_a_type_is_written_as_in_code(program: SimpleNamespace) -> None:
    assert program.type_name(dict[str, Path] | None) == "dict[str, Path] | None"


def test_a_cell_cannot_leave_its_row(program: SimpleNamespace) -> None:
    assert program.table(["a", "b"], [["x | <y>\nz", ""]]) == "| a |\n| --- |\n| x \\| &lt;y> z |\n"
