"""`vgpo doctor`: a recipe, its data, model and machine, checked before a run."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vgpo.recipe.checks import CHECKS, examine_all, findings_table
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import host_of
from vgpo.recipe.loading import quiet_libraries
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.setup import Setup

ERRORS = (RecipeError,)


def run(config: str, overrides: Sequence[str]) -> bool:
    """Look at a recipe, its data, model and machine; one line for each check.

    Returns:
        Whether no check failed.

    Raises:
        RecipeError: The recipe itself cannot be read.
    """
    quiet_libraries()
    if host_of(config, overrides) == "verl":
        raise RecipeError(f"{config}: host is verl, and this checks runs on TRL: python -m vgpo.verl {config} --check")
    recipe = load_recipe(config, overrides)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder, console.status("") as status:
        findings = examine_all(CHECKS, Setup(recipe, Path(folder)), lambda name: status.update(f"checking {name}"))
    console.print(findings_table(findings))
    return not any(finding.status == "fail" for finding in findings.values())
