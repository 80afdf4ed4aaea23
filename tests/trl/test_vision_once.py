"""A frozen vision tower runs once per prompt and generation, and the run is that of a tower in each pass."""

import logging

import pytest
import torch
from peft import LoraConfig

from tests.trl.tiny import GROUP, mixed_rows
from vgpo.toy.model import build_model

FROZEN = {"freeze": ["vision", "projector"]}
SETTINGS = {
    "frozen": FROZEN,
    "four-updates": {**FROZEN, "steps_per_generation": 4, "max_steps": 8},
    "micro-batches": {**FROZEN, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2 * GROUP},
    "separate-rows": {**FROZEN, "share_prompt": "off"},
    "text-only-rows": {**FROZEN, "dataset": mixed_rows()},
    "black-images": {**FROZEN, "shaping": "kl_perception"},
    "lora": {"trainer_kwargs": {"peft_config": LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj")}},
}


def run(make_trainer, processor, settings, *, keep):
    policy = build_model(processor.tokenizer, seed=1)
    calls = []
    policy.model.visual.register_forward_hook(lambda tower, args, output: calls.append(len(args[0])))
    torch.manual_seed(3)
    trainer = make_trainer(policy=policy, **{"max_steps": 2, "learning_rate": 1e-4, **settings})
    assert trainer.keep_vision_outputs
    trainer.keep_vision_outputs = keep
    torch.manual_seed(7)
    trainer.train()
    return trainer, calls, {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.train
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_run_is_that_of_a_tower_in_each_pass(make_trainer, processor, settings):
    trainer, calls, weights = run(make_trainer, processor, settings, keep=True)
    _, base_calls, base_weights = run(make_trainer, processor, settings, keep=False)
    assert 0 < sum(calls) < sum(base_calls)  # patches
    assert trainer.state.global_step == trainer.state.max_steps
    for name, weight in base_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.train
def test_four_updates_need_one_look_at_each_image(make_trainer, processor):
    settings = {**SETTINGS["four-updates"], "max_steps": 4, "per_device_train_batch_size": GROUP}
    trainer, calls, _ = run(make_trainer, processor, settings, keep=True)
    assert trainer._plan.prompts == len(calls) == 4


@pytest.mark.train
def test_the_log_says_so_once(make_trainer, caplog):
    with caplog.at_level(logging.INFO, logger="vgpo"):
        make_trainer(**FROZEN).train()
    assert [line for line in caplog.messages if "runs once per prompt and generation" in line] == [
        "The vision tower runs once per prompt and generation: its weights are frozen."
    ]


def test_a_trained_tower_runs_in_each_pass(make_trainer):
    assert not make_trainer().keep_vision_outputs
    assert not make_trainer(freeze=["vision"]).keep_vision_outputs


@pytest.mark.train
def test_parity_compares_kept_outputs_with_the_tower(make_trainer, monkeypatch):
    parity = make_trainer(parity="auto", **FROZEN).check_parity()
    [line] = [gap for gap in parity.gaps if "kept" in gap.name]
    assert line.passes
    trainer = make_trainer(parity="auto", **FROZEN)
    media = type(trainer).media_of

    def other_images(self, prompts):
        found = media(self, prompts)
        for output in found.get("mm_encoder_outputs", {}).values():
            output.pooler_output = [features * 1.5 for features in output.pooler_output]
        return found

    monkeypatch.setattr(type(trainer), "media_of", other_images)
    parity = trainer.check_parity()
    [line] = [gap for gap in parity.gaps if "kept" in gap.name]
    assert not line.passes
    assert not trainer.keep_vision_outputs
