"""Recipes for verl, read without it: no field is forgotten, and each has TRL's name, type and default."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import transformers
from packaging.version import Version
from trl import GRPOConfig, ModelConfig

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import REFUSED_KEYS, recipe_folder
from vgpo.recipe.recipe import RECIPE_PARTS as TRL_PARTS
from vgpo.recipe.recipe import load_recipe as load_trl_recipe
from vgpo.verl.arguments import OtherArguments, VerlArguments
from vgpo.verl.fields import AGGREGATION, FIELDS, SECTIONS, Mapped, Ours, Refused, Unused
from vgpo.verl.keys import verl_keys
from vgpo.verl.recipe import RECIPE_PARTS, VerlRecipe, check_checkpoint, check_refused, load_recipe, recipe_from

OF_TRL = {f.name: f for kind in (GRPOConfig, ModelConfig) for f in dataclasses.fields(kind) if f.init}
COPIES = {f.name: (kind, f) for kind in (VerlArguments, OtherArguments) for f in dataclasses.fields(kind)}
NEWEST = Version(transformers.__version__) >= Version("5.24")
BASE: dict[str, Any] = {
    "host": "verl",
    "train_data": "toy:train",
    "model_name_or_path": "toy",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 8,
    "save_strategy": "no",
}


def recipe(*words: str, **values: Any) -> VerlRecipe:
    return recipe_from({**BASE, **values}, words, where="r.yaml")


def keys(**values: Any) -> dict[str, Any]:
    return verl_keys(recipe(**values))


def names(kinds: tuple[type, ...]) -> list[str]:
    return [f.name for kind in kinds for f in dataclasses.fields(kind) if f.init]


def default_of(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def parts_of(hint: Any) -> set[str]:
    return {str(part) for part in get_args(hint)} or {str(hint)}


def test_the_table_has_every_field_once() -> None:
    listed = [name for section in SECTIONS.values() for name in section]
    assert len(listed) == len(set(listed)) == len(FIELDS)
    assert set(names(TRL_PARTS)) <= FIELDS.keys()


@pytest.mark.skipif(not NEWEST, reason="the table has fields of transformers 5.24, which older versions lack")
def test_the_table_has_no_field_that_is_gone() -> None:
    assert FIELDS.keys() <= set(names(TRL_PARTS))


def test_a_recipe_has_the_same_fields_on_both_hosts() -> None:
    own = names(RECIPE_PARTS)
    assert len(own) == len(set(own))
    assert {*own, *REFUSED_KEYS} == FIELDS.keys()


@pytest.mark.parametrize("name", [name for name in COPIES if name in OF_TRL or NEWEST])
def test_a_copied_field_has_the_type_and_the_default_of_trl(name: str) -> None:
    kind, copy = COPIES[name]
    hints = {**get_type_hints(GRPOConfig), **get_type_hints(ModelConfig)}
    assert default_of(copy) == default_of(OF_TRL[name])
    assert parts_of(get_type_hints(kind)[name]) == parts_of(hints[name])


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_where_its_kind_says(name: str) -> None:
    if name in names((VerlArguments,)) and name != "model_revision":  # refused for names on the hub alone
        assert isinstance(FIELDS[name], Mapped | Ours)
    if name in names((OtherArguments,)):
        assert isinstance(FIELDS[name], Unused | Refused)


@pytest.mark.process
def test_reading_a_recipe_imports_neither_trl_nor_verl() -> None:
    code = (
        "import sys, vgpo.verl.config, vgpo.verl.keys, vgpo.recipe.loading;"
        "print({'trl', 'verl', 'hydra', 'omegaconf', 'ray', 'vllm'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


OTHER_VALUES = {"label_names": ["x"], "include_for_metrics": ["x"], "optim_target_modules": ["x"], "debug": ["x"]}


def other_value(field: Any) -> Any:
    """A value that is not the default."""
    default = default_of(field)
    if field.name in OTHER_VALUES:
        return OTHER_VALUES[field.name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 0.5 if default == int(default) and isinstance(default, float) else default + 1
    return {"freeze": ["vision"], "parity": "strict", "share_prompt": "on"}.get(field.name, "other")


REFUSED = [
    f for kind in RECIPE_PARTS for f in dataclasses.fields(kind) if f.init and isinstance(FIELDS[f.name], Refused)
]


@pytest.mark.parametrize("field", REFUSED, ids=lambda field: field.name)
def test_a_refused_field_is_named_with_its_value_and_what_to_do(field: Any) -> None:
    made = recipe()
    part = next(part for part in (made.run, made.method, made.arguments, made.other) if hasattr(part, field.name))
    value = other_value(field)
    setattr(part, field.name, value)
    made.arguments.model_name_or_path = "org/model"  # of a folder, any revision is what is there
    check = check_checkpoint if field.name == "model_revision" else check_refused
    with pytest.raises(RecipeError) as error:
        check(made)
    assert str(error.value).startswith(f"r.yaml: {field.name} ")
    assert repr(value) in str(error.value)


def test_a_refused_field_may_have_its_default_value() -> None:
    recipe(vllm_mode="colocate", freeze=[], share_prompt="off", parity="off", sync_ref_model=False, eval_suite=[])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"loss_type": "cispo"}, "loss_type is 'cispo', expected one of ['dapo', 'grpo', 'dr_grpo']"),
        ({"loss_type": "bnpo"}, "loss_type is 'bnpo'"),
        ({"scale_rewards": "batch"}, "scale_rewards is 'batch', expected 'group' or 'none'"),
        ({"beta": 0.1}, "use_bias_correction_kl is True, expected false with beta"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level is 'sequence', expected 'token'"),
        ({"delta": 1.1}, "delta is 1.1, expected at least 1 + epsilon_high = 1.2"),
        ({"entropy_coef": 0.1, "loss_type": "grpo"}, "entropy_coef is 0.1, expected 0"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is"),
        ({"optim": "sgd"}, "optim is"),
        ({"dtype": "auto"}, "dtype is 'auto', expected one of ['float32', 'bfloat16', 'float16']"),
        ({"use_peft": True}, "lora_dropout is 0.05, expected 0"),
        ({"report_to": "comet_ml"}, "report_to is 'comet_ml'"),
        ({"save_strategy": "epoch"}, "save_strategy is"),
        ({"num_train_epochs": 1.5}, "num_train_epochs is 1.5, expected a whole number"),
        ({"max_steps": 3}, "max_steps is 3, expected a multiple of 2, the updates of a generation"),
        ({"save_strategy": "steps", "save_steps": 5}, "save_steps is 5.0, expected a multiple of 2"),
        ({"num_processes": 12}, "num_processes is 12, expected at most 8 or a multiple of it"),
        ({"max_completion_length": None}, "max_completion_length is None, expected a number of tokens"),
        ({"vllm_max_model_length": 100}, "vllm_max_model_length is 100, expected more than max_completion_length"),
        (
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.5},
            "vllm_importance_sampling_clip_min is 0.5, expected none",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
            "warmup_steps is 3.0, expected a multiple of 2",
        ),
        ({"steps_per_generation": 6}, "steps_per_generation (6) is not a multiple of gradient_accumulation_steps (4)"),
        ({"per_device_train_batch_size": 1}, "is not a whole number of groups of num_generations=8"),
        ({"generation_batch_size": 33, "steps_per_generation": None}, "generation_batch_size is 33, expected"),
        ({"generation_batch_size": 32}, "generation_batch_size and steps_per_generation say the same"),
        ({"host": "trl"}, "host is 'trl', expected verl"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 exclude each other"),
        ({"alarm_kl": 0.5}, "alarm_kl"),
        ({"max_pixels": 9}, "min_pixels is None, expected a number of pixels as well as max_pixels"),
        ({"min_pixels": 9}, "max_pixels is None, expected a number of pixels as well as min_pixels"),
        ({"model_name_or_path": "org/x", "trust_remote_code": True}, "trust_remote_code is True"),
        ({"loading_steps": 1}, "unknown field 'loading_steps' (did you mean 'logging_steps'?)"),
        ({"output_dir": "x"}, "output_dir cannot be set: checkpoints go into the run folder"),
    ],
)
def test_a_value_that_verl_has_nothing_for_is_named_with_what_is_expected(values: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RecipeError) as error:
        keys(**values)
    assert wanted in str(error.value)
    assert str(error.value).startswith("r.yaml: ")


def test_a_key_is_said_to_be_of_the_fields_that_make_it() -> None:
    made = set(
        keys(attn_implementation="sdpa", vllm_model_impl="transformers")
        | keys(use_peft=True, lora_dropout=0.0)
    )  # fmt: skip
    said = {key for kind in FIELDS.values() if isinstance(kind, Mapped) for key in kind.keys}
    assert said == made | {"data.train_files", "data.val_files"}


def test_batches_are_those_of_trl() -> None:
    words = ("--use_cpu", "true")
    for path in recipe_folder().glob("*.yaml"):
        if path.stem == "qwen2_5_vl_3b_lora_1gpu" or "quickstart" in path.stem:
            continue
        ours = load_recipe(path, ["--host", "verl"]).plan
        theirs = dataclasses.replace(load_trl_recipe(path, words).config.batch_plan, num_processes=ours.num_processes)
        assert ours == theirs


def test_a_generation_in_prompts() -> None:
    # 8 x 8 rollouts on each of 4 GPUs: 256 / 8 = 32 prompts, in two updates of 8 x 4 x 4 / 8 = 16, twice
    made = keys(num_processes=4, num_iterations=2, max_steps=12, generation_batch_size=None)
    assert made["data.train_batch_size"] == 32
    assert made["actor_rollout_ref.actor.ppo_mini_batch_size"] == 16
    assert made["actor_rollout_ref.actor.ppo_epochs"] == 2
    assert made["trainer.total_training_steps"] == 3  # 12 updates, 4 in a generation
    assert (made["trainer.nnodes"], made["trainer.n_gpus_per_node"]) == (1, 4)


@pytest.mark.parametrize(("gpus", "machines"), [(None, (1, 1)), (8, (1, 8)), (32, (4, 8))])
def test_machines(gpus: int | None, machines: tuple[int, int]) -> None:
    made = keys(num_processes=gpus)
    assert (made["trainer.nnodes"], made["trainer.n_gpus_per_node"]) == machines


@pytest.mark.parametrize(
    ("values", "rollout_is", "threshold"),
    [
        ({}, "sequence", "1e-09_3.0"),
        ({"vllm_importance_sampling_clip_min": 0.5}, "sequence", "0.5_3.0"),
        ({"vllm_importance_sampling_mode": "token_truncate"}, "token", 3.0),
        (
            {"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": None},
            "token",
            "1e-09_1000000000.0",
        ),
        ({"vllm_importance_sampling_correction": False}, None, None),
    ],
)
def test_the_correction_of_the_sampler(values: dict[str, Any], rollout_is: str | None, threshold: Any) -> None:
    made = keys(**values)
    assert made["algorithm.rollout_correction.rollout_is"] == rollout_is
    assert made.get("algorithm.rollout_correction.rollout_is_threshold") == threshold


def test_truncated_sampling_with_ratios_of_complete_responses_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    keys(top_p=0.99)
    assert "with top_p 0.99 the importance ratio of a complete response (sequence_mask) falls" in caplog.text
    caplog.clear()
    keys(top_p=0.99, vllm_importance_sampling_mode="token_mask")
    assert "importance ratio" not in caplog.text


@pytest.mark.parametrize(
    ("values", "param", "engine"),
    [
        ({}, "bf16", "bfloat16"),
        ({"fp16": True}, "fp16", "float16"),
        ({"bf16": False}, "fp32", "float32"),
        ({"bf16": False, "dtype": "bfloat16"}, "bf16", "bfloat16"),
        ({"vllm_dtype": "float16"}, "bf16", "float16"),
    ],
)
def test_precision(values: dict[str, Any], param: str, engine: str) -> None:
    made = keys(**values)
    for role in ("actor", "ref"):
        mixed = made[f"actor_rollout_ref.{role}.fsdp_config.mixed_precision"]
        assert mixed == {"param_dtype": param, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    assert made["actor_rollout_ref.rollout.dtype"] == engine


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"warmup_steps": 4}, ("constant", -1, 0.0)),  # TRL's constant rate has no warmup
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}, ("constant", 2, 0.0)),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 0.1}, ("cosine", -1, 0.1)),
        ({"lr_scheduler_type": "cosine"}, ("cosine", -1, 0.0)),
    ],
)
def test_the_learning_rate(values: dict[str, Any], wanted: tuple[str, int, float]) -> None:
    made = keys(**values)
    names = ("lr_scheduler_type", "lr_warmup_steps", "lr_warmup_steps_ratio")
    assert tuple(made[f"actor_rollout_ref.actor.optim.{name}"] for name in names) == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [({"loss_type": name}, {"actor_rollout_ref.actor.loss_agg_mode": mode}) for name, mode in AGGREGATION.items()]
    + [
        ({"loss_type": "dr_grpo"}, {"actor_rollout_ref.actor.loss_scale_factor": 512}),
        ({"delta": 4.0}, {"actor_rollout_ref.actor.clip_ratio_c": 4.0}),
        ({}, {"actor_rollout_ref.actor.clip_ratio_c": 1e9, "actor_rollout_ref.actor.clip_ratio_high": 0.2}),
        ({"epsilon": 0.1, "epsilon_high": 0.3}, {"actor_rollout_ref.actor.clip_ratio_high": 0.3}),
        (
            {"shaping": "none", "importance_sampling_level": "sequence"},
            {"actor_rollout_ref.actor.policy_loss.loss_mode": "gspo"},
        ),
        (
            {"beta": 0.1, "use_bias_correction_kl": False},
            {"actor_rollout_ref.actor.use_kl_loss": True, "actor_rollout_ref.actor.kl_loss_coef": 0.1},
        ),
        ({"scale_rewards": "none"}, {"algorithm.norm_adv_by_std_in_grpo": False}),
        ({"max_grad_norm": 0.0}, {"actor_rollout_ref.actor.optim.clip_grad": 1e30}),
        ({"save_strategy": "steps", "save_steps": 6}, {"trainer.save_freq": 3}),
        ({}, {"trainer.save_freq": 2**31, "trainer.test_freq": -1, "data.val_batch_size": 1}),
        (
            {"eval_data": "toy:test", "evaluate_before": False},
            {"trainer.test_freq": 2**31, "trainer.val_before_train": False, "data.val_batch_size": None},
        ),
        ({"report_to": ["wandb", "none"]}, {"trainer.logger": ["console", "wandb"]}),
        ({"vllm_max_model_length": 2000}, {"data.max_prompt_length": 2000 - 512}),
        (
            {"max_prompt_length": 77},
            {"data.max_prompt_length": 77, "actor_rollout_ref.rollout.max_model_len": 77 + 512},
        ),
        ({"vllm_max_model_length": 2000}, {"actor_rollout_ref.rollout.max_model_len": 2000}),
        ({"min_pixels": 3, "max_pixels": 9}, {"data.mm_processor_kwargs": {"min_pixels": 3, "max_pixels": 9}}),
        ({"chat_template_kwargs": {"a": 1}}, {"data.apply_chat_template_kwargs": {"a": 1}}),
        ({"activation_checkpointing": False}, {"actor_rollout_ref.model.enable_gradient_checkpointing": False}),
        ({"top_k": 0}, {"actor_rollout_ref.rollout.top_k": -1}),
        (
            {"dynamic_sampling": True, "rewards": ["format", "accuracy"]},
            {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": "accuracy_reward"},
        ),
    ],
)
def test_what_a_field_becomes(values: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = keys(**values)
    assert {key: made[key] for key in wanted} == wanted


@pytest.mark.parametrize("vision", [False, True])
def test_adapters(vision: bool) -> None:
    made = keys(use_peft=True, lora_dropout=0.0, lora_r=4, lora_vision=vision)
    assert made["actor_rollout_ref.model.lora_rank"] == 4
    assert made["actor_rollout_ref.model.target_modules"] == "all-linear"
    assert "hf_model" not in made["actor_rollout_ref.actor.checkpoint.save_contents"]
    assert "hf_model" in keys()["actor_rollout_ref.actor.checkpoint.save_contents"]
    pattern = made["actor_rollout_ref.model.exclude_modules"]
    if vision:
        assert pattern is None
        return
    for name in ("model.visual.blocks.0.attn.qkv", "model.visual.merger.mlp.0", "model.vision_tower.layers.0.fc1"):
        assert re.fullmatch(pattern, name)
    for name in ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.mlp.up_proj"):
        assert not re.fullmatch(pattern, name)


def test_a_recipe_is_made_of_its_fields_again() -> None:
    first = recipe(verl={"trainer.nnodes": 1}, columns={"answer": "truth"}, shaping_options={})
    again = recipe_from(first.fields, where="r.yaml")
    assert again.fields == first.fields


def test_json_on_the_command_line_is_read() -> None:
    made = recipe("--verl", '{"trainer.nnodes": 1}', "--chat_template_kwargs", '{"a": 1}')
    assert made.run.verl == {"trainer.nnodes": 1}
    assert made.arguments.chat_template_kwargs == {"a": 1}
    with pytest.raises(RecipeError, match="verl is"):
        recipe("--verl", "{")


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    words = ["--lora_dropout", "0", "--host", "verl"]
    assert verl_keys(load_recipe(path, words))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (
            {"shaping_options": {"stratum_column": "source"}},
            "adaptive .without strata and blind gate.*do not compute stratum. Train it",
        ),
        ({"shaping_options": {"blind_gate": True}}, "expected no blind_gate: verl's trainer samples no rollouts"),
    ],
    ids=str,
)
def test_parts_of_the_adaptive_shaping_that_verl_cannot_measure_are_refused(
    settings: dict[str, Any], missing: str
) -> None:
    recipe(shaping="adaptive")
    with pytest.raises(RecipeError, match=missing):
        recipe(shaping="adaptive", **settings)
