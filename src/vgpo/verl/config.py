"""verl's configuration of a recipe: verl's defaults, the recipe's fields, vgpo's parts, then the mapping `verl`."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.parsing import one_line
from vgpo.recipe.values import leaves, shown
from vgpo.text import did_you_mean
from vgpo.verl.fields import ACTOR, ALGORITHM, DATA, FIELDS, MODEL, REF, ROLLOUT, TRAINER, Mapped
from vgpo.verl.keys import STATE, verl_keys
from vgpo.verl.names import MODEL_TYPE
from vgpo.verl.recipe import VerlRecipe, load_recipe, recipe_from

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["VerlRecipe", "compose", "load_recipe", "recipe_from", "recipe_of"]

# Keys by which verl finds the parts of vgpo, and on which they rely; nothing else may be there.
WIRING: dict[str, Any] = {
    f"{TRAINER}.use_v1": True,
    f"{TRAINER}.v1.trainer_mode": "vgpo_sync",
    f"{MODEL}.model_type": MODEL_TYPE,
    f"{MODEL}.external_lib": "vgpo.verl.engine",
    # Tokenizer and config are those of the checkpoint, whose files were checked.
    f"{MODEL}.tokenizer_path": None,
    f"{MODEL}.hf_config_path": None,
    # verl would write no note of the newest checkpoint.
    f"{ACTOR}.checkpoint.async_save": False,
    f"{DATA}.custom_cls.path": "pkg://vgpo.verl.dataset",
    f"{DATA}.custom_cls.name": "VGPODataset",
    f"{DATA}.return_raw_chat": True,
    "reward.reward_manager.source": "importlib",
    "reward.reward_manager.name": "VGPORewardManager",
    "reward.reward_manager.module.path": "pkg://vgpo.verl.rewards",
    "reward.reward_model.enable": False,
    f"{ROLLOUT}.agent.default_agent_loop": "vgpo_single_turn",
    f"{ROLLOUT}.agent.agent_loop_config_path": str(Path(__file__).with_name("agent_loops.yaml")),
    f"{ROLLOUT}.calculate_log_probs": True,
    f"{ALGORITHM}.use_kl_in_reward": False,
    # The log-probability pass that it saves is the one that measures visual focus.
    f"{ALGORITHM}.rollout_correction.bypass_mode": False,
    "critic.enable": False,
    f"{ACTOR}.checkpoint.load_contents": STATE,
}
# Defaults of vgpo that differ from verl's; the mapping `verl` may set them.
DEFAULTS: dict[str, Any] = {
    f"{ALGORITHM}.adv_estimator": "grpo",
    f"{ACTOR}.strategy": "fsdp2",
    f"{ROLLOUT}.name": "vllm",
}
# Keys derived from fields that the mapping `verl` may override: how work is distributed over GPUs.
LAYOUT = (
    f"{TRAINER}.nnodes",
    f"{TRAINER}.n_gpus_per_node",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    f"{REF}.log_prob_micro_batch_size_per_gpu",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
    f"{MODEL}.exclude_modules",
    f"{ACTOR}.optim.optimizer",
    f"{ACTOR}.optim.override_optimizer_config",
    f"{ACTOR}.fsdp_config.mixed_precision",
    f"{REF}.fsdp_config.mixed_precision",
)
# Keys that verl reads although its YAML files do not have them.
NOT_IN_YAML = (
    f"{MODEL}.model_type",
    f"{MODEL}.target_parameters",
    f"{MODEL}.override_config.attn_implementation",
    f"{ROLLOUT}.engine_kwargs.vllm.model_impl",
    f"{ACTOR}.fsdp_config.mixed_precision",
    f"{REF}.fsdp_config.mixed_precision",
)
STRATEGIES = ("fsdp", "fsdp2")


def recipe_of(config: Any) -> VerlRecipe:
    """The recipe of a composed configuration, or of its section `data`, in any process.

    Raises:
        RecipeError: There is none: the configuration was not made by `compose`.
    """
    from omegaconf import OmegaConf

    found = OmegaConf.select(config, "vgpo.recipe")
    if found is None:
        raise RecipeError("verl's configuration has no vgpo.recipe; start the run with `python -m vgpo.verl RECIPE`")
    values = OmegaConf.to_container(found, resolve=True)
    return recipe_from(values, where="verl's configuration (vgpo.recipe)")


def compose(recipe: VerlRecipe) -> "DictConfig":
    """verl's configuration of a recipe, checked by verl itself.

    Raises:
        RecipeError: A field or a key of the mapping `verl` that verl cannot run with.
    """
    from omegaconf import OmegaConf, open_dict

    check_texts_of(recipe)
    config = verl_defaults()
    set_keys(config, {**DEFAULTS, **verl_keys(recipe), **WIRING})
    set_keys(config, own_keys(recipe, config), force=True)
    check_layout(recipe, config)
    with open_dict(config):
        # Each its own container, of plain values.
        config.vgpo = OmegaConf.create({"recipe": recipe.fields})
        config.data.vgpo = OmegaConf.create({"recipe": recipe.fields})
    check_by_verl(recipe, config)
    return config


def verl_defaults() -> "DictConfig":
    """verl's own configuration, composed without its command line and without changing the working directory."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return hydra_compose("ppo_trainer")


def set_keys(config: "DictConfig", keys: Mapping[str, Any], *, force: bool = False) -> None:
    from omegaconf import OmegaConf

    for key, value in keys.items():
        OmegaConf.update(config, key, value, merge=False, force_add=force or key in NOT_IN_YAML)


def check_texts_of(recipe: VerlRecipe) -> None:
    """Check that no text of a recipe has a special meaning in verl's configuration.

    Raises:
        RecipeError: One would be read as a reference to another key.
    """
    for name, value in recipe.fields.items():
        texts = [item for _, item in leaves(name, value) if isinstance(item, str)]
        if name != "verl" and any("${" in text for text in texts):
            recipe.refuse(name, "no '${', which verl's configuration reads as a reference to another key")


def own_keys(recipe: VerlRecipe, config: "DictConfig") -> dict[str, Any]:
    """The mapping `verl` with one dotted key for each value.

    Raises:
        RecipeError: verl has no such key, or vgpo sets it.
    """
    from omegaconf import OmegaConf

    known = OmegaConf.to_container(config, resolve=False)
    keys = {}
    for key, value in flat(recipe.run.verl or {}, known):  # type: ignore[arg-type]  # a text was read as JSON
        name = key.removeprefix("+")
        if name in WIRING:
            raise RecipeError(
                f"{recipe.where}: verl: {name} is {shown(value)}, and vgpo needs it to be {WIRING[name]!r}; remove it"
            )
        makers = [field for field, kind in FIELDS.items() if isinstance(kind, Mapped) and name in kind.keys]
        if makers and name not in LAYOUT:
            raise RecipeError(
                f"{recipe.where}: verl: {name} is made of the recipe's {', '.join(makers)}; set it there"
            )
        if name == key and name not in NOT_IN_YAML and not is_known(name, known):
            raise RecipeError(
                f"{recipe.where}: verl: unknown key {name!r}{did_you_mean(name, dotted(known))}; write '+{name}' if "
                "verl reads it although its YAML files do not have it"
            )
        keys[name] = value
    return keys


def flat(values: Mapping[str, Any], known: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a mapping is taken apart where verl has a section of that name."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and isinstance(found(key.removeprefix("+"), known), dict):
            yield from flat(value, known, f"{key}.")
        else:
            yield key, value


def found(key: str, known: Any) -> Any:
    """What verl has under a dotted key, None where it has nothing."""
    for part in key.split("."):
        known = known.get(part) if isinstance(known, dict) else None
    return known


def is_known(key: str, known: Any) -> bool:
    """Whether verl has a key, or a mapping without entries above it, in which any may stand."""
    for part in key.split("."):
        if known == {}:
            return True
        if not isinstance(known, dict) or part not in known:
            return False
        known = known[part]
    return True


def dotted(known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in known.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_layout(recipe: VerlRecipe, config: "DictConfig") -> None:
    """Check that GPUs, shards and attention are consistent, and that verl's engine can measure visual focus.

    Raises:
        RecipeError: They do not.
    """
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    where, gpus = recipe.where, recipe.num_processes
    nodes = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if actor.strategy not in STRATEGIES:
        raise RecipeError(
            f"{where}: verl: {ACTOR}.strategy is {actor.strategy!r}, expected one of {list(STRATEGIES)}: visual focus "
            "is measured in verl's FSDP engine"
        )
    if nodes != gpus:
        raise RecipeError(
            f"{where}: verl: {TRAINER}.nnodes x n_gpus_per_node is {nodes}, expected num_processes={gpus}, for which "
            "the batch sizes are written"
        )
    check_divides(f"{ROLLOUT}.tensor_model_parallel_size", rollout.tensor_model_parallel_size, gpus, where)
    shards = max(actor.ulysses_sequence_parallel_size, actor.fsdp_config.ulysses_sequence_parallel_size)
    check_divides(f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size", shards, gpus, where)
    check_budgets(config, shards, where)
    attention = config.actor_rollout_ref.model.override_config.get("attn_implementation", "flash_attention_2")
    if shards > 1 and not str(attention).startswith("flash_attention"):
        recipe.refuse(
            "attn_implementation",
            f"'flash_attention_2' with {shards} sequence shards (ulysses_sequence_parallel_size): verl gathers "
            "sequences in flash attention alone, and computes wrong values with any other, without an error",
        )


def check_budgets(config: "DictConfig", shards: int, where: str) -> None:
    """Check that the longest prompt with the longest response fits the token budgets, which verl would find late.

    Raises:
        RecipeError: It does not.
    """
    section = config.actor_rollout_ref
    if not section.actor.use_dynamic_bsz:
        return
    longest = config.data.max_prompt_length + config.data.max_response_length
    budgets = {
        f"{ACTOR}.ppo_max_token_len_per_gpu": section.actor.ppo_max_token_len_per_gpu,
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu": section.rollout.log_prob_max_token_len_per_gpu,
    }
    for key, budget in budgets.items():
        if budget * shards < longest:
            raise RecipeError(
                f"{where}: verl: {key} is {budget}, expected at least {-(-longest // shards)}: max_prompt_length + "
                f"max_completion_length are {longest} tokens, which {shards} GPUs share"
            )


def check_divides(key: str, size: int, gpus: int, where: str) -> None:
    if gpus % size:
        raise RecipeError(f"{where}: {key} is {size}, expected a divisor of num_processes={gpus}")


def check_by_verl(recipe: VerlRecipe, config: "DictConfig") -> None:
    """verl's own checks, without what they print.

    Raises:
        RecipeError: They found something.
    """
    from hydra.errors import HydraException
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)
    except ImportError as error:
        raise RecipeError(f"{recipe.where}: verl needs a package for this recipe: {one_line(error)}") from error
    except HydraException as error:  # around what a dataclass of verl says
        raise RecipeError(f"{recipe.where}: verl does not take this: {one_line(error.__cause__ or error)}") from error
    except (AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(f"{recipe.where}: verl does not take this: {one_line(error)}") from error
