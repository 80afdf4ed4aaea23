"""`vgpo train`: one run from a recipe to a report."""

from collections.abc import Sequence

from rich.console import Console

from vgpo.recipe.train import ERRORS, train_recipe
from vgpo.terminal import from_here, say

__all__ = ["ERRORS", "run"]


def run(config: str, overrides: Sequence[str], *, command: Sequence[str]) -> None:
    """Train as the recipe `config` says, with `--field value` words that override it."""
    recipe, trained = train_recipe(config, overrides, command=command)
    if recipe.config.should_log:
        say(Console(), f"report: {from_here(trained.folder.report_path)}")
