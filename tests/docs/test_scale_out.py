"""The page about verl has the table of `vgpo.verl.fields`, and names recipes and packages that there are."""

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgpo.recipe.files import recipe_folder
from vgpo.verl.fields import FIELDS, SECTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale_out.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "verl_fields_page.py")))


def test_the_table_of_fields_is_that_of_the_program(program: SimpleNamespace) -> None:
    assert program.with_table(PAGE, SECTIONS) == PAGE, "run .venv/bin/python .ci/verl_fields_page.py"
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE)))
    assert FIELDS.keys() <= set(listed)


@pytest.mark.parametrize("page", ["no markers", "{BEGIN} {BEGIN} {END}"])
def test_a_page_without_its_two_markers_is_left_alone(program: SimpleNamespace, page: str) -> None:
    with pytest.raises(ValueError, match="expected it once"):
        program.with_table(page.format(BEGIN=program.BEGIN, END=program.END), SECTIONS)


def test_the_recipes_of_the_page_are_those_that_there_are() -> None:
    shipped = {path.stem for path in recipe_folder().glob("verl_*.yaml")}
    assert set(re.findall(r"^\| `(verl_\w+)` \|", PAGE, re.MULTILINE)) == shipped
    for name in shipped:
        head = (recipe_folder() / f"{name}.yaml").read_text().partition("\nextends:")[0]
        assert f"python -m vgpo.verl recipes/{name}.yaml" in head
        assert all(f"# {word}:" in head for word in ("Hardware", "Time", "Memory", "Expected"))
        assert "this recipe has not been run" in head


def test_the_extra_installs_the_version_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "verl>=0.9.1,<0.10" in project["optional-dependencies"]["verl"]
    assert set(re.findall(r"verl(?:\[\w+\])?==([\d.]+)", PAGE)) == {"0.9.1"}
