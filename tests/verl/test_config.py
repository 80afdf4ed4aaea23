"""verl's configuration of a recipe: what verl itself makes of it, and what it refuses."""

import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoProcessor
from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, kl_penalty
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.utils.tokenizer.tokenizer import build_multimodal_processor_inputs
from verl.workers.config.optimizer import build_optimizer

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import recipe_folder
from vgpo.recipe.loading import set_pixel_limits
from vgpo.toy import checkpoint_path
from vgpo.verl.config import (
    DEFAULTS,
    LAYOUT,
    NOT_IN_YAML,
    WIRING,
    compose,
    load_recipe,
    own_keys,
    recipe_of,
    verl_defaults,
)
from vgpo.verl.fields import FIELDS, Mapped
from vgpo.verl.keys import NO_BOUND, verl_keys

pytestmark = pytest.mark.filterwarnings("ignore")
VERL_RECIPES = sorted(recipe_folder().glob("verl_*.yaml"))
ADAPTERS = ("--use_peft", "true", "--lora_dropout", "0", "--verl", '{"actor_rollout_ref.rollout.name": "sglang"}')


def composed(*words: str, name: str = "quickstart_vgpo") -> Any:
    return compose(load_recipe(name, ["--host", "verl", *words]))


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


@pytest.mark.parametrize("path", VERL_RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_passes_verls_own_checks(path: Path) -> None:
    config = compose(load_recipe(path))
    OmegaConf.resolve(config)
    assert (config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size) == (512, 128)
    assert config.actor_rollout_ref.rollout.n == 8
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == load_recipe(path).num_processes
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    assert config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--attn_implementation", "sdpa", "--vllm_model_impl", "transformers"),
        ADAPTERS,
        ("--beta", "0.1", "--use_bias_correction_kl", "false"),
        ("--loss_type", "dr_grpo", "--fp16", "true"),
        ("--shaping", "none", "--importance_sampling_level", "sequence"),
        ("--lr_scheduler_type", "cosine", "--warmup_steps", "0.1"),
    ],
    ids=" ".join,
)
def test_every_key_of_a_recipe_stands_in_the_configuration(words: tuple[str, ...]) -> None:
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", *words])
    config = compose(recipe)
    for key, value in {**verl_keys(recipe), **WIRING}.items():
        assert plain(OmegaConf.select(config, key)) == value, key
    assert config.critic.enable is False


def test_every_key_of_the_table_is_one_of_verl() -> None:
    known = verl_defaults()
    for kind in FIELDS.values():
        for key in kind.keys if isinstance(kind, Mapped) else ():
            parent, _, name = key.rpartition(".")
            assert key in NOT_IN_YAML or name in OmegaConf.select(known, parent, throw_on_missing=False).keys(), key  # noqa: SIM118  # a key without a value is not one of the section's


def test_what_verls_yaml_does_not_have_is_read_by_its_dataclasses() -> None:
    config = composed("--attn_implementation", "sdpa")
    config.actor_rollout_ref.model.external_lib = None
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.engine.mixed_precision["param_dtype"] == "fp32"
    assert actor.engine.strategy == "fsdp2"
    assert actor.optim.betas == [0.9, 0.95]
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert model.model_type == "vgpo_language_model"
    assert model.hf_config._attn_implementation == "sdpa"


def test_the_optimizer_is_adamw_with_the_settings_of_the_recipe() -> None:
    optim = omega_conf_to_dataclass(composed("--adam_epsilon", "1e-6").actor_rollout_ref.actor.optim)
    made = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
    assert type(made) is torch.optim.AdamW
    group = made.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"], tuple(group["betas"])) == (2e-5, 1e-6, 0.0, (0.9, 0.95))


def test_the_recipe_is_in_the_configuration_and_its_data_section() -> None:
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--verl", '{"trainer.balance_batch": false}'])
    config = compose(recipe)
    assert recipe_of(config).fields == recipe_of(config.data).fields == recipe.fields
    OmegaConf.resolve(config)
    assert not config.trainer.balance_batch
    with pytest.raises(RecipeError, match=r"vgpo\.recipe"):
        recipe_of(verl_defaults())


def test_composing_leaves_command_line_and_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vgpo", "train", "--seed", "3"])
    folder = Path.cwd()
    composed()
    assert (sys.argv, Path.cwd()) == (["vgpo", "train", "--seed", "3"], folder)
    assert "VERL_FULL_DETERMINISM" not in os.environ


def test_verl_finds_the_parts_of_vgpo() -> None:
    config = composed()
    assert get_dataset_class(config.data).__name__ == "VGPODataset"
    assert resolve_reward_manager_cls(config).__name__ == "VGPORewardManager"
    loops = OmegaConf.load(config.actor_rollout_ref.rollout.agent.agent_loop_config_path)
    assert [loop.name for loop in loops] == [config.actor_rollout_ref.rollout.agent.default_agent_loop]
    module, _, name = loops[0]._target_.rpartition(".")
    assert hasattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [
        ('{"actor_rollout_ref.actor.sheduler": 1}', "unknown key 'actor_rollout_ref.actor.sheduler' (did you mean"),
        ('{"actor_rollout_ref": {"actor": {"sheduler": 1}}}', "unknown key 'actor_rollout_ref.actor.sheduler'"),
        ('{"data.train_batch_size": 3}', "data.train_batch_size is made of the recipe's per_device_train_batch_size"),
        ('{"+data.train_batch_size": 3}', "data.train_batch_size is made of the recipe's"),
        ('{"actor_rollout_ref.actor.strategy": "megatron"}', "strategy is 'megatron', expected one of"),
        ('{"actor_rollout_ref.actor.strategy": "veomni"}', "strategy is 'veomni', expected one of"),
        ('{"trainer.nnodes": 3}', "nnodes x n_gpus_per_node is 3, expected num_processes=1"),
        ('{"algorithm.rollout_correction.bypass_mode": true}', "vgpo needs it to be False; remove it"),
        ('{"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2}', "is 2, expected a divisor of num_processes"),
        ('{"actor_rollout_ref.actor.ppo_micro_batch_size": 2}', "verl does not take this: [actor] You have set both"),
    ],
)
def test_a_key_that_cannot_be_set_is_named(mapping: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as error:
        composed("--verl", mapping)
    assert wanted in str(error.value)
    assert "quickstart_vgpo.yaml: " in str(error.value)


def test_a_key_that_a_field_makes_is_not_wired() -> None:
    """What is wired would win over the field."""
    made = {key for kind in FIELDS.values() if isinstance(kind, Mapped) for key in kind.keys}
    assert not made & {*WIRING, *DEFAULTS}
    assert made > {*LAYOUT}


@pytest.mark.parametrize("key", WIRING)
def test_a_key_on_which_vgpo_relies_cannot_be_set(key: str) -> None:
    with pytest.raises(RecipeError, match="vgpo needs it to be"):
        composed("--verl", f'{{"{key}": "other"}}')


def test_sequence_shards_need_flash_attention() -> None:
    shards = '{"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2}'
    composed("--num_processes", "2", "--verl", shards)
    with pytest.raises(RecipeError, match="attn_implementation is 'sdpa', expected 'flash_attention_2' with 2 sequ"):
        composed("--num_processes", "2", "--attn_implementation", "sdpa", "--verl", shards)


@pytest.mark.parametrize("key", ["actor.ppo_max_token_len_per_gpu", "rollout.log_prob_max_token_len_per_gpu"])
def test_the_longest_row_must_fit_a_budget_of_tokens(key: str) -> None:
    def budget(tokens: int) -> str:
        return f'{{"actor_rollout_ref.actor.use_dynamic_bsz": true, "actor_rollout_ref.{key}": {tokens}}}'

    lengths = ("--max_prompt_length", "60", "--max_completion_length", "40")
    composed(*lengths, "--verl", budget(100))
    with pytest.raises(RecipeError, match=f"{key} is 99, expected at least 100: "):
        composed(*lengths, "--verl", budget(99))


def test_a_text_that_verl_would_read_as_a_reference_is_refused() -> None:
    with pytest.raises(RecipeError, match="run_name is"):
        composed("--run_name", "${oc.env:HOME}")


def test_layout_may_be_set_in_the_mapping() -> None:
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl"])
    known = verl_defaults()
    for key in LAYOUT:
        changed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, verl={key: 1}))
        assert own_keys(changed, known) == {key: 1}  # known, or read without standing in the YAML files
    free = {"actor_rollout_ref": {"rollout": {"engine_kwargs": {"vllm": {"max_num_seqs": 3}}}}, "+x.y": 1}
    changed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, verl=free))
    config = compose(changed)
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.max_num_seqs == 3
    assert config.x.y == 1


def test_the_keys_of_the_page_are_keys_of_verl() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale_out.md").read_text()
    blocks = [yaml.safe_load(block)["verl"] for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    recipe = load_recipe("verl_qwen2_5_vl_7b")
    assert len(blocks) == 2
    for mapping in blocks:
        compose(dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, verl=mapping)))


@pytest.mark.parametrize(("low", "high"), [(784, 20_000), (50_000, 200_704), (1_000, 8_000)])
def test_pixel_limits_make_the_same_patches_as_on_trl(low: int, high: int) -> None:
    limits = dict(composed("--min_pixels", f"{low}", "--max_pixels", f"{high}").data.mm_processor_kwargs)
    image = Image.effect_noise((300, 500), 90).convert("RGB")
    ours, theirs = (AutoProcessor.from_pretrained(checkpoint_path()) for _ in range(2))
    set_pixel_limits(ours.image_processor, low, high)
    expected = ours(text=["<|image_pad|>"], images=[image], return_tensors="pt")
    found = build_multimodal_processor_inputs(
        theirs, text=["<|image_pad|>"], images=[image], mm_processor_kwargs=limits
    )
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["input_ids"], expected["input_ids"])


def actor_config(*words: str) -> Any:
    return omega_conf_to_dataclass(composed(*words).actor_rollout_ref.actor)


def policy_loss(ratio: list[float], advantage: float, *words: str) -> torch.Tensor:
    logs = torch.tensor([ratio]).log()
    ones = torch.ones_like(logs)
    old = torch.zeros_like(logs)
    loss, _ = compute_policy_loss_vanilla(old, logs, ones * advantage, ones, "token-mean", actor_config(*words))
    return loss


def test_no_ratio_is_cut_off_without_delta_and_where_delta_says_with_it() -> None:
    # a negative advantage: max(-A r, -A clip(r)), of which delta bounds the first
    assert policy_loss([7.0], -1.0) == pytest.approx(7.0)
    assert policy_loss([7.0], -1.0, "--delta", "4") == pytest.approx(4.0)
    assert policy_loss([7.0], 1.0, "--delta", "4") == pytest.approx(-1.28)
    assert torch.tensor(20.0).exp() < NO_BOUND  # verl's largest ratio


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.float32)
LOSS = torch.tensor([[1.0, 2.0, 3.0, 9.0], [8.0, 9.0, 9.0, 9.0]])


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", 14 / 4),  # 1 + 2 + 3 + 8 over 4 tokens
        ("grpo", (2 + 8) / 2),  # means of the two rollouts
        ("dr_grpo", 14 / (2 * 40)),  # over 2 rollouts of max_completion_length
    ],
)
def test_losses_are_averaged_as_on_trl(loss_type: str, expected: float) -> None:
    config = actor_config("--loss_type", loss_type)
    options = {"global_batch_size": 2, "batch_num_tokens": 4, "loss_scale_factor": config.loss_scale_factor}
    assert agg_loss(LOSS, MASK, config.loss_agg_mode, **options) == pytest.approx(expected)


def test_the_divergence_is_trls() -> None:
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])
    kind = actor_config("--beta", "0.1", "--use_bias_correction_kl", "false").kl_loss_type
    gap = reference - policy
    assert torch.allclose(kl_penalty(policy, reference, kind), gap.exp() - gap - 1)


def test_names_of_verl_on_which_the_configuration_relies() -> None:
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    assert list(inspect.signature(validate_config).parameters) == ["config", "use_reference_policy", "use_critic"]
    assert list(inspect.signature(need_reference_policy).parameters) == ["config"]
    from verl.workers.engine_workers import TrainingWorker

    # Why warmup_steps is given in generations: the rate changes after the last update of one.
    assert "update_lr_scheduler=batch_idx == total_num_iterations - 1" in inspect.getsource(TrainingWorker)
