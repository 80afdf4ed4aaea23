"""`vgpo recipes`: the recipes, accelerate files and studies that come with the package."""

import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.packaged import PackagedFile, packaged_files
from vgpo.terminal import from_here, say
from vgpo.text import did_you_mean

ERRORS = (RecipeError,)


def show_list() -> None:
    """Print the name, the kind and the first comment line of every packaged file."""
    table = Table("name", "", "", box=None, pad_edge=False)
    for one in packaged_files():
        table.add_row(one.name, one.kind, Text(one.title))
    Console().print(table)


def show(name: str) -> None:
    """Print a packaged file."""
    say(Console(), find(name).path.read_text(encoding="utf-8").rstrip("\n"))


def copy(name: str, destination: Path) -> None:
    """Copy a packaged file.

    Args:
        name: Of the file.
        destination: A file that is not there yet, or a folder.

    Raises:
        RecipeError: There is no such file, or the destination is taken or cannot be written.
    """
    source = find(name).path
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise RecipeError(f"{target} exists already; name another file, or move it away first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise RecipeError(f"{target} cannot be written: {error.strerror}") from error
    say(Console(), f"copied: {from_here(target.absolute())}")


def find(name: str) -> PackagedFile:
    """The packaged file of a name, with or without `.yaml`.

    Raises:
        RecipeError: There is none.
    """
    files = {one.name: one for one in packaged_files()}
    key = name.removesuffix(".yaml")
    if key not in files:
        raise RecipeError(f"the package has no file {name!r}{did_you_mean(key, files)}; `vgpo recipes` lists them")
    return files[key]
