"""`vgpo merge`: an adapter and its base as one plain checkpoint."""

from pathlib import Path

from rich.console import Console

from vgpo.recipe.export import ERRORS, refuse_full_weights, write_plain
from vgpo.recipe.loading import quiet_libraries
from vgpo.terminal import say

__all__ = ["ERRORS", "run"]


def run(adapter: str, out: Path, *, dtype: str) -> None:
    """Merge, write and compare; say what was written."""
    quiet_libraries()
    refuse_full_weights(adapter)
    say(Console(), f"merged: {write_plain(adapter, out, dtype=dtype)}")
