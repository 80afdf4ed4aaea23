"""The package keeps the structure that CONTRIBUTING.md shows; its table of floors is read from there."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vgpo"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)

MAX_METHODS = 25
MAX_LINES = 50  # of a function, without signature and docstring
MAX_NESTING = 4
MAX_FOLDER_LINES = {"trl": 1700, "commands": 1600}
# Libraries that only the named parts of the package may import.
HOSTS = {"trl": ("trl", "vllm", "recipe"), "verl": ("verl",)}


def floors() -> dict[str, int]:
    """Part of the package -> its floor, as CONTRIBUTING.md lists them."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    return {
        Path(part.rstrip("/")).stem: int(floor)
        for floor, parts in ROW.findall(section.partition("\n## ")[0])
        for part in re.findall(r"`vgpo/([\w./]+)`", parts)
    }


def part_of(module: str) -> str:
    """The folder or file directly in the package that a module belongs to; the package itself is part of none."""
    return module.split(".")[1] if "." in module else ""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, *, lazy: bool = True) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import that runs; without `lazy`, of those that run with the module."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) or (isinstance(child, ast.FunctionDef) and not lazy):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, None) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((str(child.module), alias.name) for alias in child.names)
        yield from imports(child, lazy=lazy)


def imported_modules(module: str, *, lazy: bool = True) -> set[str]:
    """Modules of the package that a module imports."""
    pairs = imports(TREES[module], lazy=lazy)
    found = {f"{target}.{name}" if f"{target}.{name}" in MODULES else target for target, name in pairs}
    return found & MODULES.keys()


def test_the_table_lists_every_part_once():
    assert {part for part in map(part_of, MODULES) if part} == floors().keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_floors_only(module):
    own, table = part_of(module), floors()
    upward = [
        target
        for target in imported_modules(module)
        if part_of(target) not in ("", own) and own and table[part_of(target)] >= table[own]
    ]
    assert not upward, f"{module} is on floor {table[own]} and imports {upward}"


def test_no_import_circle():
    graph = {module: imported_modules(module, lazy=False) for module in MODULES}
    # Python imports a package before its modules, which does not make them import each other.
    graph = {
        module: {target for target in found if not module.startswith(f"{target}.")} for module, found in graph.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", HOSTS)
def test_only_its_host_imports_a_trainer(library):
    found = {
        part_of(module)
        for module, tree in TREES.items()
        for target, _ in imports(tree)
        if target.split(".")[0] == library
    }
    assert found <= set(HOSTS[library])


def test_no_subcommand_imports_another():
    entries = {
        f"vgpo.commands.{name}"
        for target, name in imports(TREES["vgpo.cli"])
        if target == "vgpo.commands" and name is not None
    }
    assert len(entries) > 5
    found = {module: imported_modules(module) & entries for module in entries}
    assert not {module: others for module, others in found.items() if others}


@pytest.mark.parametrize("folder", MAX_FOLDER_LINES)
def test_a_folder_stays_small(folder):
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / folder).rglob("*.py"))
    assert lines <= MAX_FOLDER_LINES[folder]


def test_classes_and_functions_stay_small():
    too_large = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and (number := sum(map(is_function, node.body))) > MAX_METHODS:
                too_large.append(f"{module}.{node.name} has {number} methods")
            if is_function(node) and (number := num_lines(node)) > MAX_LINES:
                too_large.append(f"{module}.{node.name} has {number} lines")
            if is_function(node) and (number := nesting(node)) > MAX_NESTING:
                too_large.append(f"{module}.{node.name} is nested {number} deep")
    assert not too_large


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def num_lines(function: ast.FunctionDef) -> int:
    """Lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def nesting(node: ast.AST) -> int:
    """How many blocks are inside each other; an `elif` is as deep as its `if`."""
    blocks = ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match
    depths = [0]
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        depths.append(nesting(child) + (isinstance(child, blocks) and not is_elif))
    return max(depths)
