"""Recipes: YAML files of settings, validated before anything heavy is loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import ModelConfig

from vgpo.data import template_text
from vgpo.recipe.consistency import (
    DOWNLOAD,
    check_adapters,
    check_model_name,
    check_num_weights,
    check_remote_code,
)
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import blame, find_recipe, option_names, read_fields
from vgpo.recipe.parsing import field_names, parse_fields
from vgpo.recipe.run_arguments import RunArguments
from vgpo.training.accuracy import accuracy_reward_name
from vgpo.trl import VGPOConfig

logger = logging.getLogger(__name__)


ON_CPU = ("--use_cpu", "true")  # a recipe for GPUs can be parsed on any machine

RECIPE_PARTS = (RunArguments, VGPOConfig, ModelConfig)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: everything `vgpo.recipe.train.train` needs."""

    run: RunArguments
    config: VGPOConfig
    model: ModelConfig

    @property
    def wants_thought(self) -> bool:
        """Whether responses must begin with a thought between tags."""
        return "format" in self.run.rewards or "<think>" in template_text(self.run.template)

    @property
    def accuracy_reward(self) -> str:
        """The reward that measures accuracy.

        Raises:
            ValueError: `filter_reward` is not one of the rewards.
        """
        return accuracy_reward_name(self.run.reward_names, self.config.filter_reward)


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and the command line that overrides it.

    A recipe may extend another one: `extends: NAME`, then the fields that differ.

    Args:
        source: Path of a YAML file, or the name of a packaged recipe.
        overrides: Command-line words such as `["--learning_rate", "1e-6"]`.

    Raises:
        RecipeError: Missing file, not a mapping, unknown or rejected key, or an invalid value.
    """
    path = find_recipe(source)
    return recipe_from(read_fields(path, field_names(RECIPE_PARTS)), overrides, where=str(path), name=path.stem)


def recipe_from(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str, name: str = "run") -> Recipe:
    """A recipe from fields and values, and a command line that overrides them.

    Args:
        values: Fields of the recipe.
        overrides: As in `load_recipe`.
        where: Where the values come from, for messages.
        name: Name of the folder below `runs` that is the default of `run_dir`.

    Raises:
        RecipeError: An unknown or rejected field, or an invalid value.
    """
    recipe = Recipe(*parse_fields(RECIPE_PARTS, values, overrides, where=where))
    with blame(where, values, option_names(overrides, field_names(RECIPE_PARTS))):
        check_consistency(recipe, where=where)
    # Absolute, so that no later change of the working directory moves files.
    recipe.run.run_dir = str(Path(recipe.run.run_dir or Path("runs") / name).expanduser().absolute())
    recipe.config.output_dir = str(Path(recipe.run.run_dir) / "checkpoints")
    return recipe


def check_consistency(recipe: Recipe, *, where: str) -> None:
    """Whether the fields of a recipe fit together.

    Raises:
        RecipeError: Some do not; names them.
    """
    run, config, model = recipe.run, recipe.config, recipe.model
    check_model_name(model.model_name_or_path, where=where)
    check_num_weights(run.rewards, config.reward_weights, where=where)
    check_adapters(lora_vision=run.lora_vision, freeze=config.freeze, use_peft=model.use_peft, where=where)
    check_reference(config, model, where=where)
    check_server(run, config, where=where)
    check_remote_code(
        str(model.model_name_or_path), model.model_revision, trust_remote_code=config.trust_remote_code, where=where
    )
    check_accuracy_reward(recipe, where=where)


def check_accuracy_reward(recipe: Recipe, *, where: str) -> None:
    """Check that there is a reward that measures accuracy."""
    try:
        _ = recipe.accuracy_reward
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def check_reference(config: VGPOConfig, model: ModelConfig, *, where: str) -> None:
    """Check that the reference model, which the parent loads again from the hub, equals the start model.

    Raises:
        RecipeError: It would have another revision.
    """
    name, revision = str(model.model_name_or_path), model.model_revision
    if config.beta and not model.use_peft and revision not in (None, "main") and not Path(name).is_dir():
        raise RecipeError(
            f"{where}: beta {config.beta:g} would load the newest {name} as the reference model, not model_revision "
            f"{revision}; {DOWNLOAD.format(name=name)}, or set beta: 0"
        )


def check_server(run: RunArguments, config: VGPOConfig, *, where: str) -> None:
    """Check that devices for a vLLM server are only set if one is used."""
    if run.vllm_server_devices is not None and not (config.use_vllm and config.vllm_mode == "server"):
        raise RecipeError(
            f"{where}: vllm_server_devices has no effect without use_vllm: true and vllm_mode: server; set them, or "
            "remove it"
        )
