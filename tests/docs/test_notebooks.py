"""The notebooks are stored without outputs, and name what vgpo has. `make test-docs` runs them."""

import ast
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpo.inspection.compute import Options

PATHS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> ast.Module:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(code_of(path)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vgpo"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def test_every_notebook_is_on_the_page() -> None:
    page = (PATHS[0].parents[1] / "notebooks.md").read_text(encoding="utf-8")
    assert len(PATHS) == 3
    assert all(f"(notebooks/{path.name})" in page for path in PATHS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_there(path: Path) -> None:
    imports = list(imports_of(path))
    assert imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_options_of_an_inspection_are_fields() -> None:
    path = next(path for path in PATHS if path.stem == "inspect")
    calls = [node for node in ast.walk(code_of(path)) if isinstance(node, ast.Call)]
    asked = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "inspect"]
    known = {"name", "progress", *(field.name for field in dataclasses.fields(Options))}
    assert len(asked) == 2
    assert {keyword.arg for call in asked for keyword in call.keywords} <= known
