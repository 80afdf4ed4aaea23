"""With nothing to shape the trainer is its parent."""

import pytest
import torch
import trl.trainer.grpo_trainer as host
from trl import GRPOConfig, GRPOTrainer

from vgpo.focus import banned_token_ids
from vgpo.toy.model import build_model
from vgpo.trl import VGPOConfig


def losses_and_weights(trainer):
    torch.manual_seed(7)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [{"intra": False, "inter": False}, {"shaping": "none"}, {"shaping": "none", "measure_focus": False}],
    ids=["grains-off", "none", "none-unmeasured"],
)
@pytest.mark.parametrize(
    "schedule",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 2},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2, "beta": 0.04},
    ],
    ids=["own-forward", "old-pass", "reused"],
)
def test_without_factors_it_is_the_parent_bit_for_bit(make_trainer, monkeypatch, processor, settings, schedule):
    monkeypatch.setattr(host, "shuffle_sequence_dict", lambda batch: batch)
    monkeypatch.setattr(host, "create_model_from_path", lambda *a, **k: build_model(processor.tokenizer, seed=1))
    # The parent bans the image token only; with our ban on both sides they sample from the same distribution.
    banned = banned_token_ids(build_model(processor.tokenizer, seed=1).config)
    common = {"max_steps": 5, "generation_kwargs": {"suppress_tokens": banned}, **schedule}
    parent = make_trainer(GRPOTrainer, GRPOConfig, policy=build_model(processor.tokenizer, seed=1), **common)
    own = {"shuffle_groups": False, "share_prompt": "off"}
    child = make_trainer(policy=build_model(processor.tokenizer, seed=1), **own, **settings, **common)
    parent_losses, parent_weights = losses_and_weights(parent)
    child_losses, child_weights = losses_and_weights(child)
    assert len(parent_losses) == 5
    assert any(loss != 0 for loss in parent_losses)
    assert child_losses == parent_losses
    for name, weight in parent_weights.items():
        assert torch.equal(child_weights[name], weight), name


@pytest.mark.train
def test_the_method_changes_the_weights(make_trainer, processor):
    weights = []
    for settings in ({}, {"shaping": "none"}):
        trainer = make_trainer(policy=build_model(processor.tokenizer, seed=1), shuffle_groups=False, **settings)
        weights.append(losses_and_weights(trainer)[1])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_config_extends_the_parents():
    assert issubclass(VGPOConfig, GRPOConfig)
