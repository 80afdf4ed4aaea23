"""Train a recipe on the host that it names.

Only this host is imported: TRL and verl need not both be installed.
"""

from collections.abc import Sequence

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import host_of


def errors_of_host(config: str, overrides: Sequence[str]) -> tuple[type[Exception], ...]:
    """Errors of `train_on_host` that a user can fix.

    Raises:
        RecipeError: The recipe cannot be read, or its host is not installed.
    """
    if host_of(config, overrides) != "verl":
        from vgpo.recipe.train import ERRORS

        return ERRORS
    try:
        from vgpo.verl.main import ERRORS as VERL_ERRORS
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"host: verl needs {error.name}, which is not installed here: pip install 'vgpo[verl]', or see "
            "docs/scale_out.md for images with a GPU"
        ) from error
    return VERL_ERRORS


def train_on_host(config: str, overrides: Sequence[str], *, command: Sequence[str]) -> None:
    """Train the recipe `config`, with overrides given as `--field value` words."""
    if host_of(config, overrides) == "verl":
        from vgpo.verl.config import load_recipe
        from vgpo.verl.main import train

        train(load_recipe(config, overrides), command=command)
        return
    from vgpo.recipe.train import train_recipe
    from vgpo.run.closing import say_results

    recipe, trained = train_recipe(config, overrides, command=command)
    if recipe.config.should_log:
        say_results(trained.folder)
