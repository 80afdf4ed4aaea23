"""Names of TRL, transformers and accelerate on which vgpo relies although nobody promises that they stay.

`pins.json` lists them. An upgrade that moves one fails here and not in a run, and so does code that begins to rely on
another one. Its sections:

- `VGPOTrainer`, `VGPOConfig`: what these classes and their parents inside vgpo override, with the class that defines
  it and the parameters that it takes.
- `attributes`: what the trainer's code reads, writes or calls of its parent without overriding it (`self.x`,
  `trainer.x`, private names in strings): the type after a step, or class and parameters. "absent" is an attribute
  that only other settings set.
- `library`: what `src/vgpo` imports from below the root of a package, and private names that it uses, by path. The
  path of a private name that is not imported says where to look for it.

Pins have neither annotations nor `self`. With the newest tested versions (`vgpo.recipe.tested`; those of
`requirements.lock`) a pin holds in full. With other versions only the names of positional parameters count, up to a
`|` if there is one, and others may follow.
"""

import ast
import enum
import inspect
import json
import textwrap
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, GRPOTrainer

import vgpo
from vgpo.recipe.tested import TESTED
from vgpo.trl import VGPOConfig, VGPOTrainer

PINS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("pins.json").read_text())
LIBRARIES = ("accelerate", "peft", "transformers", "trl")
IN_FULL = all(version(name) == str(TESTED[name].newest) for name in LIBRARIES)
STANDARD_LIBRARY = {"_actions", "_exit"}  # argparse.ArgumentParser._actions, os._exit
SPECIAL = {"__init__": GRPOTrainer, "__post_init__": GRPOConfig}  # others are made by Python or by dataclasses
FIX = "Read what has changed there, adapt vgpo, and then change tests/trl/pins.json."


# What is in the code


@cache
def sources() -> dict[str, ast.Module]:
    """The modules of vgpo by their path in the package; tests/verl has pins of the other host."""
    root = Path(vgpo.__file__).parent
    paths = [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] != "verl"]
    return {str(path.relative_to(root)): ast.parse(path.read_text()) for path in paths}


def nodes_of(cls: type) -> list[ast.AST]:
    return list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))))


def all_nodes() -> list[tuple[str, ast.AST]]:
    """Every node of vgpo's code, with the module that it is in."""
    return [(path, node) for path, tree in sources().items() for node in ast.walk(tree)]


def is_of(node: ast.AST, *owners: str) -> bool:
    """Whether a node is an attribute of `owner`, or of `something.owner`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in owners


def is_set(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_classes(cls: type) -> list[type]:
    """A class and its parents inside vgpo."""
    return [parent for parent in cls.__mro__ if parent.__module__.partition(".")[0] == "vgpo"]


# What it is in the libraries


def definition(cls: type, name: str) -> str | None:
    """The class that defines a name of `cls`, and what it is there; None if no class does."""
    for owner in cls.__mro__[:-1]:
        if name in vars(owner):
            return f"{owner.__name__}: {describe(vars(owner)[name])}"
    return None


def describe(value: Any) -> str:
    """The parameters of what can be called, the type of anything else."""
    value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if isinstance(value, property | cached_property):
        return "property"
    if isinstance(value, enum.EnumType):
        return "enum"
    if not inspect.isroutine(value) and not inspect.isclass(value):
        return type(value).__name__
    parameters = inspect.signature(value).parameters.values()
    kept = [parameter.replace(annotation=parameter.empty) for parameter in parameters if parameter.name != "self"]
    return str(inspect.Signature(kept))


def describe_path(path: str) -> str:
    """What is at a dotted path."""
    try:
        return describe(resolve(path))
    except (AttributeError, ImportError):
        return "absent"


def resolve(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        owner = resolve(parent)
        return inspect.getattr_static(owner, name) if inspect.isclass(owner) else getattr(owner, name)


# Comparison


def differences(found: dict[str, str], pinned: dict[str, str], *, in_full: bool = IN_FULL) -> list[str]:
    """A line for each name that has no pin, that has an unused pin, or that has moved."""
    lines = []
    for name in sorted(found.keys() | pinned.keys()):
        if name not in pinned:
            lines.append(f"{name}: found {found[name]}, which has no pin")
        elif name not in found:
            lines.append(f"{name}: expected {pinned[name]}, found nothing of this name that vgpo uses")
        elif not (found[name] == pinned[name].replace("| ", "") if in_full else begins(found[name], pinned[name])):
            lines.append(f"{name}: found {found[name]}, expected {pinned[name]}")
    return lines


def begins(found: str, pinned: str) -> bool:
    """Whether positional parameters begin with those that are pinned; what has no parameters has to be equal."""
    expected = positional(pinned)
    return positional(found)[: len(expected)] == expected


def positional(pin: str) -> list[str]:
    """The names of positional parameters up to a `|`, after the text before the parameters."""
    before, bracket, parameters = pin.partition("(")
    if not bracket:
        return [pin]
    kept = parameters.partition("|")[0].rstrip(" ,)") if "|" in parameters else parameters[:-1]
    [function] = ast.parse(f"def f({kept}): ...").body
    assert isinstance(function, ast.FunctionDef)
    return [before, *(argument.arg for argument in function.args.posonlyargs + function.args.args)]


def assert_pinned(section: str, found: dict[str, str]) -> None:
    if lines := differences(found, PINS[section]):
        pytest.fail("\n".join([f"{section}:", *lines, FIX]), pytrace=False)


# The three tables


def overrides(cls: type, parent: type) -> dict[str, str]:
    """What the classes of vgpo override of `parent`."""
    names = {name for own in own_classes(cls) for name in vars(own)}
    kept = {name for name in names if not name.startswith("__") or SPECIAL.get(name) is parent}
    return {name: defined for name in kept if (defined := definition(parent, name))}


def attributes(trainer: VGPOTrainer) -> dict[str, str]:
    """What the trainer's code uses of its parent without overriding it."""
    own = {name for cls in own_classes(VGPOTrainer) for name in vars(cls)}
    parents = GRPOTrainer.__mro__[:-1]
    set_there = {node.attr for cls in parents for node in nodes_of(cls) if is_of(node, "self") and is_set(node)}
    found = {}
    for name in used_names():
        if name in set_there:
            found[name] = type(vars(trainer)[name]).__name__ if name in vars(trainer) else "absent"
        elif name not in own and (defined := definition(GRPOTrainer, name)):
            found[name] = defined
    return found


def used_names() -> set[str]:
    """Attributes of a trainer that vgpo's code names."""
    nodes = [node for _, node in all_nodes()]
    names = {node.attr for node in nodes if is_of(node, "trainer")}
    for own in own_classes(VGPOTrainer):
        names |= {node.attr for node in nodes_of(own) if is_of(node, "self", "super()")}
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return names | set(filter(is_private, strings))


def library() -> dict[str, str]:
    """What vgpo imports from below the root of a library, and the private names that it uses."""
    paths = imported_paths()
    unknown = {}
    for name, place in private_names().items():
        pinned = {path for path in PINS["library"] if path.rpartition(".")[2] == name}
        paths |= pinned
        if not pinned:
            unknown[name] = place
    return unknown | {path: describe_path(path) for path in paths}


def imported_paths() -> set[str]:
    paths = set()
    for _, node in all_nodes():
        if isinstance(node, ast.Import):
            paths |= {alias.name for alias in node.names if "." in alias.name}
        elif isinstance(node, ast.ImportFrom):
            below = "." in str(node.module)
            paths |= {f"{node.module}.{alias.name}" for alias in node.names if below or is_private(alias.name)}
    return {path for path in paths if path.partition(".")[0] in LIBRARIES}


def private_names() -> dict[str, str]:
    """Private attributes that are neither vgpo's own nor the trainer's parent's, with a place that uses them."""
    nodes = all_nodes()
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and is_set(node)}
    own |= {node.attr for _, node in nodes if is_of(node, "self") and is_set(node)}
    own = own.union(STANDARD_LIBRARY, *(PINS[section] for section in PINS if section != "library"))
    attributes = [(path, node) for path, node in nodes if isinstance(node, ast.Attribute) and is_private(node.attr)]
    return {node.attr: f"{path}:{node.lineno}" for path, node in attributes if node.attr not in own}


@pytest.mark.parametrize(("cls", "parent"), [(VGPOTrainer, GRPOTrainer), (VGPOConfig, GRPOConfig)])
def test_overrides_are_pinned(cls: type, parent: type) -> None:
    assert_pinned(cls.__name__, overrides(cls, parent))


@pytest.mark.train
@pytest.mark.smoke
def test_attributes_of_the_parent_are_pinned(make_trainer: Callable[..., VGPOTrainer]) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert_pinned("attributes", attributes(trainer))


def test_names_of_libraries_are_pinned() -> None:
    assert_pinned("library", library())


@pytest.mark.parametrize(
    ("found", "pinned", "in_full", "in_part"),
    [
        ("Base: (a, b=1)", "Base: (a, b=1)", True, True),
        ("Base: (a, b=2)", "Base: (a, b=1)", False, True),
        ("Base: (a, b=1, c=None, **kwargs)", "Base: (a, b=1, **kwargs)", False, True),
        ("Base: (a, c=None)", "Base: (a, b=1)", False, False),
        ("Base: (a)", "Base: (a, b=1)", False, False),
        ("Other: (a, b=1)", "Base: (a, b=1)", False, False),
        ("(a, c=(0, 1))", "(a, | b=1)", False, True),
        ("(a, b=1)", "(a, | b=1)", True, True),
        ("(config=None)", "(| **kwargs)", False, True),
        ("list", "dict", False, False),
        ("property", "property", True, True),
    ],
)
def test_a_pin_holds_in_full_or_in_its_leading_parameters(
    found: str, pinned: str, in_full: bool, in_part: bool
) -> None:
    for complete, holds in ((True, in_full), (False, in_part)):
        lines = differences({"name": found}, {"name": pinned}, in_full=complete)
        assert lines == ([] if holds else [f"name: found {found}, expected {pinned}"])


def test_advantages_are_read_after_the_forward_pass() -> None:
    """What a pass gives can still change them, and they may be (B, T)."""
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    forward = loss.index("self._get_per_token_logps_and_entropies(")
    assert forward < loss.index('advantages = inputs["advantages"]'), "advantages are read before the forward pass"
    assert "if advantages.dim() == 1" in loss, "advantages (B, T) are no longer foreseen"


def test_the_old_policys_pass_comes_before_the_references() -> None:
    rollout = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert rollout.index("old_per_token_logps, _, _ = self._get_per_token") < rollout.index(
        "ref_per_token_logps, _, _ = self._get_per_token"
    ), "the reference's pass comes before the old policy's"
