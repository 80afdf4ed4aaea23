"""Steps of the trainer on the CPU and on CUDA: the parent's without shaping, those of separate rows, and in bf16."""

import math

import pytest
import torch
import trl.trainer.grpo_trainer as host
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from vgpo.focus import banned_token_ids
from vgpo.toy.model import build_model
from vgpo.trl import VGPOConfig, VGPOTrainer

pytestmark = pytest.mark.train

FIGURES = ("loss", "grad_norm", "entropy", "reward", "focus/mean", "kl")
# Two runs of the same step on CUDA differ in the last bits: backward passes add in the order in which threads come.
REL = 1e-3
SCHEDULES = {
    "own-forward": {},
    "reused-with-reference": {"steps_per_generation": 2, "num_iterations": 2, "beta": 0.04},
}
ADAPTERS = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")


@pytest.fixture
def figures_of(make_trainer, processor, device, monkeypatch):
    """What two steps of a run log; runs differ in their settings alone."""
    # The reference model is made from a folder's name, which a model built in memory lacks.
    monkeypatch.setattr(host, "create_model_from_path", lambda *a, **k: build_model(processor.tokenizer, seed=2))
    monkeypatch.setattr(host, "shuffle_sequence_dict", lambda batch: batch)

    def figures(trainer_class=VGPOTrainer, config_class=VGPOConfig, **settings):
        policy = build_model(processor.tokenizer, seed=1)
        trainer = make_trainer(
            trainer_class, config_class, policy=policy, use_cpu=device.type == "cpu", learning_rate=1e-4, **settings
        )
        assert trainer.model.device.type == device.type
        torch.manual_seed(7)
        trainer.train()
        return [{name: line[name] for name in FIGURES if name in line} for line in trainer.state.log_history[:-1]]

    return figures


def assert_alike(lines, expected):
    assert len(lines) == len(expected) == 2
    assert any(line["grad_norm"] > 0 for line in expected)
    for line, other in zip(lines, expected, strict=True):
        assert {name: line[name] for name in other} == pytest.approx(other, rel=REL, abs=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_without_shaping_a_step_is_the_parents(figures_of, processor, schedule):
    # The parent bans the image token only; with our ban on both sides they sample from the same distribution.
    banned = banned_token_ids(build_model(processor.tokenizer, seed=1).config)
    common = {"generation_kwargs": {"suppress_tokens": banned}, **schedule}
    parent = figures_of(GRPOTrainer, GRPOConfig, **common)
    for share_prompt in ("off", "on"):
        assert_alike(figures_of(shaping="none", shuffle_groups=False, share_prompt=share_prompt, **common), parent)


@pytest.mark.parametrize(
    "settings",
    [*SCHEDULES.values(), {"gradient_checkpointing": True}, {"trainer_kwargs": {"peft_config": ADAPTERS}}],
    ids=[*SCHEDULES, "checkpointed", "lora"],
)
def test_a_step_with_shared_prompts_is_that_of_separate_rows(figures_of, settings):
    shared, separate = (figures_of(share_prompt=share_prompt, **settings) for share_prompt in ("on", "off"))
    assert_alike(shared, separate)


def test_two_steps_with_checkpointing_lora_and_bf16(make_trainer, model, device):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = make_trainer(
        policy=model,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=True,
        bf16=True,
        share_prompt="on",
        trainer_kwargs={"peft_config": ADAPTERS},
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert len(lines) == 2
    for line in lines:
        assert all(math.isfinite(line[name]) for name in ("loss", "grad_norm", "entropy", "focus/mean"))
    assert lines[0]["grad_norm"] > 0
    changed = 0
    for name, weight in trainer.model.named_parameters():
        assert weight.isfinite().all(), name
        assert weight.requires_grad == ("lora_" in name)
        if "lora_B" in name:  # starts at 0
            changed += bool(weight.any())
        elif "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight.cpu(), before[plain]), name
    assert changed > 0
