"""The fields of a recipe, read from the source of their classes: without an import of torch and TRL."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# The classes of `vgpo.recipe.recipe.RECIPE_PARTS`, and those of `vgpo.verl.recipe.RECIPE_PARTS`.
TRL_CLASSES = (
    ("vgpo.recipe.run_arguments", "RunArguments"),
    ("vgpo.trl.config", "VGPOConfig"),
    ("trl.trainer.model_config", "ModelConfig"),
)
VERL_CLASSES = (
    ("vgpo.recipe.run_arguments", "RunArguments"),
    ("vgpo.training.method", "MethodArguments"),
    ("vgpo.verl.arguments", "VerlArguments"),
    ("vgpo.verl.arguments", "OtherArguments"),
)
FACTORIES = {"list": "[]", "dict": "{}"}


class SourceError(LookupError):
    """A class or a constant whose source is not where its import says."""


@dataclass(frozen=True)
class SourceField:
    """A field of a dataclass; `default` is None where a value is required."""

    name: str
    type: str
    default: str | None
    help: str
    package: str


@functools.cache
def recipe_fields(host: str = "trl") -> dict[str, SourceField]:
    """Every field that a recipe for this host may set, by its name.

    Raises:
        SourceError: the source of a class is not there.
    """
    classes = VERL_CLASSES if host == "verl" else TRL_CLASSES
    return {name: found for module, kind in classes for name, found in fields_of(module, kind).items()}


def fields_of(module: str, kind: str) -> dict[str, SourceField]:
    """The fields of a dataclass and of its bases, those of the bases first."""
    home, node = definition(module, kind)
    found: dict[str, SourceField] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id != "object":
            found |= fields_of(home, base.id)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and is_field(line):
            found[line.target.id] = read_field(home, line.target.id, line)
    return found


def definition(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """The class that a module calls `name`, and the module that defines it.

    Raises:
        SourceError: there is none.
    """
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    return definition(*find_import(module, name))


def find_import(module: str, name: str) -> tuple[str, str]:
    """Where a name that a module imports comes from, as module and name."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return absolute_name(module, node), alias.name
    raise SourceError(f"{module} neither defines nor imports {name}")


def absolute_name(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, also one that begins with dots."""
    if not node.level:
        return node.module or ""
    steps = node.level - (path_of(module).name == "__init__.py")
    package = module.rsplit(".", steps)[0] if steps else module
    return f"{package}.{node.module}" if node.module else package


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


@functools.cache
def path_of(module: str) -> Path:
    """The source file of a module, found without importing the packages that it is in."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(folder, *parts)
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    raise SourceError(f"there is no source of {module}")


def is_field(line: ast.AnnAssign) -> bool:
    """Whether a line of a class is a field that its constructor takes."""
    keywords = keywords_of(line.value)
    is_given = isinstance(init := keywords.get("init"), ast.Constant) and init.value is False
    return not is_given and not ast.unparse(line.annotation).startswith(("ClassVar", "typing.ClassVar"))


def read_field(module: str, name: str, line: ast.AnnAssign) -> SourceField:
    keywords = keywords_of(line.value)
    metadata = keywords.get("metadata")
    texts = dict(pairs_of(metadata)) if isinstance(metadata, ast.Dict) else {}
    text = " ".join(texts.get("help", "").split()).replace("%%", "%")
    annotation = ast.unparse(line.annotation)
    return SourceField(name, annotation, default_of(module, line.value), text, module.split(".")[0])


def keywords_of(value: ast.expr | None) -> dict[str, ast.expr]:
    """The arguments of `field(...)`; none of another value."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name) or value.func.id != "field":
        return {}
    return {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}


def pairs_of(node: ast.Dict) -> Iterator[tuple[str, str]]:
    """Keys and values that are texts."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield str(key.value), value.value


def default_of(module: str, value: ast.expr | None) -> str | None:
    keywords = keywords_of(value)
    if "default_factory" in keywords:
        made = keywords["default_factory"]
        if isinstance(made, ast.Lambda):
            return ast.unparse(made.body)
        return FACTORIES.get(ast.unparse(made), f"{ast.unparse(made)}()")
    default = keywords.get("default") if keywords else value
    return None if default is None else text_of(module, default)


def text_of(module: str, value: ast.expr) -> str:
    """A value as Python writes it; a constant of a module or of a class by what it stands for."""
    try:
        if isinstance(value, ast.Name):
            return constant_of(module, value.id)
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
            return attribute_of(module, value.value.id, value.attr)
    except SourceError:
        pass
    return ast.unparse(value)


def constant_of(module: str, name: str) -> str:
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and name in (getattr(target, "id", None) for target in node.targets):
            return ast.unparse(node.value)
    return constant_of(*find_import(module, name))


def attribute_of(module: str, kind: str, name: str) -> str:
    """The default of a dataclass's field, or a member of an enumeration."""
    home, node = definition(module, kind)
    for line in node.body:
        if isinstance(line, ast.Assign) and name in (getattr(target, "id", None) for target in line.targets):
            return ast.unparse(line.value)
    default = fields_of(home, kind)[name].default if name in fields_of(home, kind) else None
    if default is None:
        raise SourceError(f"{home}.{kind} has no default for {name}")
    return default
