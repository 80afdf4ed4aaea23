"""`vgpo export`: a checkpoint of a run as plain weights for the hub."""

from pathlib import Path

from rich.console import Console

from vgpo.recipe.export import ERRORS, choose, write_plain
from vgpo.recipe.loading import quiet_libraries
from vgpo.terminal import say

__all__ = ["ERRORS", "run"]


def run(source: str, out: Path, *, which: str | None) -> None:
    """Choose, write and compare; say why this checkpoint, and what was written."""
    quiet_libraries()
    console = Console()
    chosen = choose(source, which)
    for line in chosen.notes:
        say(console, line)
    say(console, f"exported: {write_plain(chosen.checkpoint, out)}")
