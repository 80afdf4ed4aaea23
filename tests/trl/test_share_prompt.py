"""A run that shares prompts is the run that does not, and reads each picture once."""

import pytest
import torch
import trl.trainer.grpo_trainer as host

from tests.trl.tiny import GROUP, mixed_rows
from vgpo.toy.model import build_model


def trained(trainer):
    torch.manual_seed(7)
    trainer.train()
    names = ("loss", "grad_norm", "entropy", "reward", "focus/mean", "kl")
    numbers = [{name: line[name] for name in names if name in line} for line in trainer.state.log_history[:-1]]
    return numbers, {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def on_and_off(make_trainer, processor, **settings):
    runs = []
    for share_prompt in ("on", "off"):
        policy = build_model(processor.tokenizer, seed=1)
        torch.manual_seed(3)
        runs.append(trained(make_trainer(policy=policy, share_prompt=share_prompt, **settings)))
    return runs


SETTINGS = {
    "own-forward": {},
    "micro-batches": {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": 2},
    "several-groups": {"per_device_train_batch_size": 3 * GROUP},
    "old-pass": {"steps_per_generation": 2},
    "reused-with-reference": {"steps_per_generation": 2, "num_iterations": 2, "beta": 0.04},
    "broken-groups": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "text-only-rows": {"dataset": mixed_rows()},
    "truncated-rows-masked": {"mask_truncated_completions": True},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed-reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "dynamic": {"dynamic_sampling": True, "max_sampling_rounds": 50},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_five_steps_end_where_separate_rows_end(make_trainer, processor, monkeypatch, settings):
    # The reference model is made from a folder's name, which a model built in memory lacks.
    monkeypatch.setattr(host, "create_model_from_path", lambda *a, **k: build_model(processor.tokenizer, seed=2))
    settings = {"max_steps": 5, "learning_rate": 1e-4, **settings}
    (numbers, weights), (base_numbers, base_weights) = on_and_off(make_trainer, processor, **settings)
    assert len(numbers) == 5
    for line, base_line in zip(numbers, base_numbers, strict=True):
        assert line == pytest.approx(base_line, rel=1e-4, abs=1e-4)
    for name, weight in base_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=2e-5, msg=name)
