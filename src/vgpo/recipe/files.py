"""Find recipe files by path or name, and read them with the recipes that they extend."""

import logging
import os.path
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.values import shown
from vgpo.recipe.yaml_files import YamlFileError, read_yaml
from vgpo.text import did_you_mean

logger = logging.getLogger(__name__)

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
    """Inside an installed package; in a checkout, next to `src`."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        RecipeError: It cannot be read; see `read_yaml`.
    """
    try:
        return read_yaml(path)
    except YamlFileError as error:
        raise RecipeError(str(error)) from error


def read_fields(path: Path, known: Sequence[str] | None) -> dict[str, Any]:
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


def check_keys(keys: Iterable[str], known: Sequence[str], *, where: str) -> None:
    """Reject unknown keys, and keys that would not have the expected effect."""
    for key in keys:
        if key in REFUSED_KEYS:
            raise RecipeError(f"{where}: {key} cannot be set: {REFUSED_KEYS[key]}")
        if key not in known:
            raise RecipeError(f"{where}: unknown field {key!r}{did_you_mean(str(key), known)}")


def renamed_option(word: str) -> str:
    """A word of the command line, with the current name if it is an option of version 0.1."""
    option, equals, value = word.removeprefix("--").partition("=")
    name = option.replace("-", "_")
    if not word.startswith("--") or name not in RENAMED_FIELDS:
        return word
    return f"--{next(iter(with_current_names({name: None})))}{equals}{value}"


def option_names(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Field names in a command line: `--field`, `--field=value`, and `--no_field` for a switch."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return [name[3:] if name.startswith("no_") and name[3:] in known else name for name in names]
