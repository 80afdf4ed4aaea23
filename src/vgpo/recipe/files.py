"""Find recipe files by path or name, and read them with the recipes that they extend."""

import logging
import os.path
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.values import shown
from vgpo.recipe.yaml_files import YamlFileError, read_yaml
from vgpo.text import did_you_mean

logger = logging.getLogger(__name__)

WORD = re.compile(r"\w+")

# Fields of the underlying libraries that are unsafe or have no effect here: rejected with the alternative.
REFUSED_KEYS = {
    "output_dir": "checkpoints go into the run folder; set run_dir instead",
    "model_init_kwargs": "set dtype, attn_implementation, model_revision or trust_remote_code instead",
    "resume_from_checkpoint": "set resume: true, which takes the newest intact checkpoint of run_dir",
    "eval_strategy": "evaluation is greedy and runs before and after the training; set eval_data instead",
}
# The key with which a recipe names the one it extends.
EXTENDS = "extends"
# Renamed fields of version 0.1.
RENAMED_FIELDS = {"alarm_groups_alike": "alarm_zero_reward_std", "alarm_answers_cut": "alarm_truncation"}


def host_of(source: str | Path, overrides: Sequence[str]) -> str:
    """The host of a recipe or of the command line that overrides it; other fields are ignored.

    Raises:
        RecipeError: The recipe cannot be read.
    """
    host = read_fields(find_recipe(source), None).get("host", "trl")
    for word, following in pairwise([*overrides, ""]):
        option, equals, value = word.partition("=")
        if option == "--host":
            host = value if equals else following
    return str(host)


def find_recipe(source: str | Path) -> Path:
    """The path of a recipe: an existing file, or the name of a packaged one."""
    if os.path.exists(source):  # noqa: PTH110  # Path.exists raises for a name that no file system takes
        return Path(source)
    shipped = {path.stem: path for path in recipe_folder().glob("*.yaml")}
    name = Path(source).stem
    if name in shipped and Path(source).parent in (Path(), Path("recipes")):
        return shipped[name]
    hint = did_you_mean(name, shipped) or f"; the package has {', '.join(sorted(shipped))}"
    raise RecipeError(f"{source}: no such recipe file{hint}")


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    return packaged_folder("recipes")


def packaged_folder(name: str) -> Path:
    """A folder of files that come with the package: inside an installed one; in a checkout, next to `src`."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        RecipeError: It cannot be read; see `read_yaml`.
    """
    try:
        return read_yaml(path)
    except YamlFileError as error:
        raise RecipeError(str(error)) from error


def read_fields(path: Path, known: Collection[str] | None) -> dict[str, Any]:
    """The fields of a recipe file, merged over those of the recipe that it extends, if any.

    Args:
        path: The file.
        known: Allowed fields of the extended recipe, None for any; the caller checks those of the file itself.

    Raises:
        RecipeError: A file cannot be read, or the extended recipe is missing, extends another one, or has an unknown
        field.
    """
    values = read_mapping(path)
    if EXTENDS not in values:
        return values
    name = values.pop(EXTENDS)
    if not isinstance(name, str):
        raise RecipeError(f"{path}: {EXTENDS} is {shown(name)}, expected the path or the name of a recipe")
    try:
        beside = path.parent / name
        extended = find_recipe(beside if os.path.exists(beside) else name)  # noqa: PTH110  # as in find_recipe
    except RecipeError as error:
        raise RecipeError(f"{path}: {EXTENDS}: {error}") from error
    base = read_mapping(extended)
    if EXTENDS in base:
        raise RecipeError(f"{path}: {EXTENDS} {name}, which extends {base[EXTENDS]!r}; extend that one")
    base = with_current_names(base)
    if known is not None:
        check_keys(base, known, where=str(extended))
    return {**base, **with_current_names(values)}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under their current names; names of version 0.1 are accepted for one release, with a warning.

    Raises:
        RecipeError: A field occurs under both names.
    """
    for old, new in RENAMED_FIELDS.items():
        if old in values and new in values:
            raise RecipeError(f"{old} and {new} are the same field; remove {old}")
        if old in values:
            logger.warning("%s is now called %s; the old name will be removed in the next release.", old, new)
    return {RENAMED_FIELDS.get(name, name): value for name, value in values.items()}


def check_keys(keys: Iterable[str], known: Collection[str], *, where: str) -> None:
    """Reject unknown keys, and keys that would not have the expected effect; all of them in one error."""
    if faults := key_faults(keys, known, where=where):
        raise RecipeError("\n".join(faults))


def key_faults(keys: Iterable[str], known: Collection[str], *, where: str) -> list[str]:
    """A line for each key that has no effect here, and one for all that are unknown, each with its nearest name."""
    keys = list(dict.fromkeys(keys))
    refused = [f"{key} cannot be set: {REFUSED_KEYS[key]}" for key in keys if key in REFUSED_KEYS]
    others = [key for key in keys if key not in known and key not in REFUSED_KEYS]
    unknown = ", ".join(f"{key!r}{did_you_mean(str(key), known)}" for key in others)
    noun = "field" if len(others) == 1 else "fields"
    return [f"{where}: {fault}" for fault in (*refused, *([f"unknown {noun} {unknown}"] if others else []))]


def renamed_option(word: str) -> str:
    """A word of the command line, with the current name if it is an option of version 0.1."""
    option, equals, value = word.removeprefix("--").partition("=")
    name = option.replace("-", "_")
    if not word.startswith("--") or name not in RENAMED_FIELDS:
        return word
    return f"--{next(iter(with_current_names({name: None})))}{equals}{value}"


def option_names(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Field names in a command line: `--field`, `--field=value`, and `--no_field` for a switch."""
    return list(option_values(words, known))


def option_values(words: Sequence[str], known: Collection[str]) -> dict[str, list[str]]:
    """The words after each field of a command line; the last of a field that is there twice. `--no_field` has none."""
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            name = option.replace("-", "_")
            if name.startswith("no_") and name[3:] in known:
                name = name[3:]
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    return found


@contextmanager
def blame(where: str, values: Collection[str], overrides: Collection[str]) -> Iterator[None]:
    """Errors that begin with `where` name the command line instead if they are about its fields.

    Args:
        where: Where the recipe comes from.
        values: The fields that the recipe sets.
        overrides: The fields that the command line sets.
    """
    try:
        yield
    except RecipeError as error:
        place, mark, message = str(error).partition(f"{where}: ")
        if place or not mark:
            raise
        raise RecipeError(f"{origin_of(message, where, values, overrides)}: {message}") from error


def origin_of(message: str, where: str, values: Collection[str], overrides: Collection[str]) -> str:
    """What an error is about, by the fields that it names: the recipe, the command line, or both."""
    named = set(WORD.findall(message))
    if not named & {*overrides}:
        return where
    return f"{where} and command line" if named & ({*values} - {*overrides}) else "command line"
