"""Names of checkpoints and datasets: paths or hub ids, and what to say of one that is missing."""

import itertools
import re
from pathlib import Path

from vgpo.text import did_you_mean

TOY_MODEL = "toy"  # the toy model
DATA_FILES = (".json", ".jsonl", ".parquet")
MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DATA_ID = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:/([\w .()-]+))?")
LIKE_A_HUB_ID = "a hub id looks like owner/name"
MAX_ENTRIES = 2_000  # of a folder, among which the nearest name is looked for


def hub_dataset(name: str) -> tuple[str, str | None] | None:
    """Id and configuration of a dataset on the hub, None of a text that can only be a path."""
    found = None if name.endswith(DATA_FILES) else DATA_ID.fullmatch(name)
    return None if found is None else (found[1], found[2])


def dataset_missing(name: str) -> str:
    """What to say of a dataset whose path is not there, and that cannot be one of the hub."""
    return f"{missing(name, 'file or folder')}; correct the path, or name a dataset of the hub: {LIKE_A_HUB_ID}"


def dataset_fault(source: str) -> str | None:
    """What is wrong with a dataset, with or without `@split`: it is neither there nor can it be one of the hub."""
    place = source if exists(source) or "@" not in source else source.rpartition("@")[0]
    is_there = exists(place) or place.split(":")[0] == TOY_MODEL or hub_dataset(place) is not None
    return None if is_there else dataset_missing(place)


def checkpoint_fault(name: str) -> str | None:
    """What is wrong with the name of a checkpoint: it is neither a folder nor can it be an id on the hub."""
    if is_folder(name) or (MODEL_ID.fullmatch(name) and not exists(name)):
        return None
    if exists(name):
        return f"{name!r} is a file, expected the folder of a checkpoint"
    return f"{missing(name, 'folder')}; correct the path, or name a checkpoint of the hub: {LIKE_A_HUB_ID}"


def exists(name: str) -> bool:
    """Whether a file or a folder has this path; a text that no file system takes is none."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def is_folder(name: str) -> bool:
    """Whether a folder has this path."""
    return exists(name) and Path(name).expanduser().is_dir()


def missing(name: str, kind: str) -> str:
    """What to say of a path that is not there, such as `there is no folder 'rnus/a' (looked at /home/me/rnus/a)`.

    Args:
        name: As the user wrote it.
        kind: What was expected there, such as `folder`.
    """
    try:
        path = Path(name).expanduser().absolute()
        place = "" if str(path) == name else f" (looked at {path})"
        return f"there is no {kind} {name!r}{place}{nearest_name(path)}"
    except (OSError, ValueError, RuntimeError):
        return f"there is no {kind} {name!r}"


def nearest_name(path: Path) -> str:
    """`" (did you mean ...?)"` for the first part of a path that is not there, by the names beside it, or nothing."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    names = [entry.name for entry in itertools.islice(folder.iterdir(), MAX_ENTRIES)]
    return did_you_mean(path.relative_to(folder).parts[0], names)
