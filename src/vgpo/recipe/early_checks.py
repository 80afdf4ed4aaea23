"""What a recipe and a command line can have wrong, as far as it shows without an import of torch: found at once."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgpo.places import TOY_MODEL, checkpoint_fault, dataset_fault, exists, missing
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.field_sources import SourceError, recipe_fields
from vgpo.recipe.files import (
    blame,
    find_recipe,
    host_of,
    key_faults,
    option_values,
    read_fields,
    renamed_option,
    with_current_names,
)
from vgpo.recipe.values import CHOICES, check_choices, check_numbers, check_texts
from vgpo.run.folder import RunFolder
from vgpo.run.lock import LOCK

NUMBERS = {"int", "float"}
SCALARS = int | float | str
DATA = ("train_data", "eval_data")


def check_early(source: str | Path, overrides: Sequence[str], *, trains: bool = False, paths: bool = True) -> None:
    """Check names of fields, numbers, choices and paths; `load_recipe` checks all the rest.

    Args:
        source, overrides: As in `vgpo.recipe.recipe.load_recipe`.
        trains: Check the run folder too.
        paths: Check that data, checkpoint and rewards are there.

    Raises:
        RecipeError: The recipe is not there, or a field is unknown, out of its range, or names a path that is missing.
        RunFolderError: The run folder holds a run already, and it is not resumed.
    """
    try:
        types = {name: found.type for name, found in recipe_fields(host_of(source, overrides)).items()}
    except SourceError:  # an installation without sources: the check of the whole recipe says the same, later
        return
    path = find_recipe(source)
    where = str(path)
    values = with_current_names(read_fields(path, types))
    words = option_values([renamed_option(word) for word in overrides], types)
    given = {**values, **{name: single(found) for name, found in words.items()}}
    faults = [*key_faults(values, types, where=where), *key_faults(words, types, where="command line")]
    if faults:
        raise RecipeError("\n".join(faults))
    if trains:
        check_run_folder(given, path.stem)
    with blame(where, values, words):
        try:
            check_values(given, types)
            if paths:
                check_paths(given)
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error


def single(words: Sequence[str]) -> str | list[str]:
    """The words of a field as a value: a text where there is one."""
    return words[0] if len(words) == 1 else list(words)


def check_values(given: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Whether numbers and choices are such.

    Raises:
        ValueError: One is not; names its field.
    """
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    check_texts(texts)
    numbers = {name: given[name] for name in given if is_number(types[name]) and isinstance(given[name], SCALARS)}
    check_numbers({name: as_number(name, value, types[name]) for name, value in numbers.items()})
    check_choices(texts, dict.fromkeys(CHOICES, str))


def check_paths(given: Mapping[str, Any]) -> None:
    """Whether datasets, the checkpoint and files of rewards are there, or can be on the hub.

    Raises:
        ValueError: One is not; names its field.
    """
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    for name in DATA:
        if name in texts and (fault := dataset_fault(texts[name])):
            raise ValueError(f"{name}: {fault}")
    model = texts.get("model_name_or_path", TOY_MODEL)
    if model != TOY_MODEL and (fault := checkpoint_fault(model)):
        raise ValueError(f"model_name_or_path: {fault}")
    rewards = given.get("rewards")
    for reward in [rewards] if isinstance(rewards, str) else rewards if isinstance(rewards, list) else []:
        check_reward(reward)


def is_number(kind: str) -> bool:
    """Whether a field of this type takes numbers and no texts."""
    parts = set(re.findall(r"\w+", kind))
    return bool(parts & NUMBERS) and parts <= {*NUMBERS, "None"}


def as_number(name: str, value: Any, kind: str) -> Any:
    """Convert a number that a command line or YAML gives as text; other values are returned unchanged.

    Raises:
        ValueError: The text is not a number.
    """
    if not isinstance(value, str) or (value == "None" and "None" in kind):
        return None if isinstance(value, str) else value
    expected = "a number" if "float" in kind else "a whole number"
    try:
        return float(value) if "float" in kind else int(value)
    except ValueError as error:
        raise ValueError(f"{name} is {value[:80]!r}, expected {expected}") from error


def check_reward(source: Any) -> None:
    """Whether the file of a user-defined reward is there.

    Raises:
        ValueError: It is not.
    """
    place, mark, _ = str(source).rpartition(":")
    if mark and place.endswith(".py") and not exists(place):
        raise ValueError(f"rewards: {missing(place, 'file')}; correct the path")


def check_run_folder(given: Mapping[str, Any], name: str) -> None:
    """Whether a training that is not resumed finds its run folder free.

    Args:
        given: Fields of the recipe and of the command line.
        name: Of the folder below `runs` that is the default of `run_dir`.

    Raises:
        RunFolderError: It holds a run.
    """
    resumes = str(given.get("resume", False)).lower() not in ("false", "0", "no", "off", "n", "f")
    folder = RunFolder(Path(str(given.get("run_dir") or Path("runs") / name)).expanduser().absolute())
    # Another process of this training may have opened the folder, and a running one is reported by its lock.
    if not resumes and os.environ.get("RANK", "0") == "0" and not (folder.path / LOCK).exists():
        folder.require_free()
