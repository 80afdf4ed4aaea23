"""`vgpo serve`: the vLLM server that a recipe's training generates with."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import quiet_libraries
from vgpo.recipe.recipe import ON_CPU, load_recipe
from vgpo.recipe.serving import server_settings, unsupported_vllm
from vgpo.recipe.setup import Setup
from vgpo.terminal import say
from vgpo.vllm.prompts import EngineError
from vgpo.vllm.server import DEVELOPMENT_MODE, as_shell, program

ERRORS = (RecipeError, EngineError)


def run(config: str, overrides: Sequence[str], *, prints: bool, extra: str) -> None:
    """Become the server of a recipe, or print its command.

    Args:
        config: What `load_recipe` takes.
        overrides: Command-line words that override fields of the recipe.
        prints: Print the command and end.
        extra: Further options of `vllm serve`, as a shell takes them; of two values of an option, theirs counts.

    Raises:
        RecipeError: The recipe, its checkpoint, or its data.
        EngineError: vLLM is not installed.
    """
    quiet_libraries()
    recipe = load_recipe(config, [*overrides, *ON_CPU])
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        command = server_settings(Setup(recipe, Path(folder))).command(shlex.split(extra))
    if prints:
        Console().print(Text(as_shell(command)), soft_wrap=True)
        return
    path = program()
    if unsupported := unsupported_vllm():
        say(Console(stderr=True), f"warning: {unsupported}")
    say(Console(stderr=True), as_shell(command))
    os.execve(path, command, {**os.environ, **DEVELOPMENT_MODE})  # the server takes this process
