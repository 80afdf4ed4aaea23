"""Training with vLLM in the same process: the same prompts, weights that arrive, and faults that end a run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl.generation.vllm_generation import VLLMGeneration

from vgpo.policy.parts import part_of_parameters
from vgpo.trl.parity import host_of
from vgpo.trl.rollout import RolloutTrainer
from vgpo.vllm.generation import EngineGeneration
from vgpo.vllm.parity import engine_gap
from vgpo.vllm.prompts import EngineError

pytestmark = pytest.mark.slow
DIFFERENCE = "sampling/sampling_logp_difference/max"
RATIO = "sampling/importance_sampling_ratio/mean"


@pytest.fixture
def trainer(make_trainer: Callable[..., Any]) -> Any:
    return make_trainer(vllm_mode="colocate", max_steps=3, parity="auto")


def test_three_steps(trainer: Any) -> None:
    trainer.train()
    lines = [line for line in trainer.state.log_history if DIFFERENCE in line]
    assert len(lines) == 3
    assert max(line[DIFFERENCE] for line in lines) < 0.05
    assert min(line[RATIO] for line in lines) > 0.9
    assert max(line["sampling/log_prob_gap"] for line in lines) < 1e-3
    assert [gap.passes for gap in trainer.parity.gaps if gap.name == "log-probs, vLLM"] == [True]


@torch.no_grad()
def shift(trainer: Any, part: str, size: float) -> None:
    """Change the weights of a part, as training does."""
    model = trainer.scoring_models()[0]
    parts = part_of_parameters(model)
    for name, weight in model.named_parameters():
        if parts[name] == part:
            weight.add_(size * torch.randn_like(weight))


def gap_of(trainer: Any) -> float:
    rows = [trainer.train_dataset[number] for number in range(4)]
    from vgpo.policy.prompts import row_with_images_in_prompt

    encoded = [trainer._encode(row_with_images_in_prompt(one)["prompt"], 0) for one in rows]
    return engine_gap(host_of(trainer), trainer.vllm_generation, encoded).mean


def test_an_image_is_seen_by_the_new_vision_tower(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gap_of(trainer) < 1e-4
    shift(trainer, "vision", 0.05)
    assert gap_of(trainer) < 1e-4
    monkeypatch.setattr(EngineGeneration, "sync_weights", VLLMGeneration.sync_weights)
    shift(trainer, "vision", 0.05)
    assert gap_of(trainer) > 1e-3


def test_adapters_are_merged_into_what_vllm_gets(make_trainer: Callable[..., Any]) -> None:
    adapters = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    trainer = make_trainer(vllm_mode="colocate", max_steps=2, peft_config=adapters)
    assert gap_of(trainer) < 1e-3
    trainer.train()
    lines = [line for line in trainer.state.log_history if DIFFERENCE in line]
    assert len(lines) == 2
    assert max(line[DIFFERENCE] for line in lines) < 0.05


def test_a_frozen_vision_tower_keeps_its_features(make_trainer: Callable[..., Any], monkeypatch: Any) -> None:
    trainer = make_trainer(vllm_mode="colocate", freeze=["vision", "projector"])
    engine = trainer.vllm_generation.llm.llm_engine
    monkeypatch.setattr(engine, "reset_encoder_cache", lambda: pytest.fail("features were forgotten"))
    trainer.train()


def test_expanded_ids_end_the_run(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RolloutTrainer, "_placeholder_ids", lambda self, prompt, row: [])
    with pytest.raises((EngineError, ValueError)):
        trainer.train()


def test_weights_that_never_arrive_end_the_run(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(vllm_mode="colocate", parity="off")
    monkeypatch.setattr(EngineGeneration, "sync_weights", lambda self: None)
    shift(trainer, "language_model", 0.3)
    with pytest.raises(EngineError, match="mean importance ratio of the policy to the inference engine is"):
        trainer.train()


def test_the_parity_check_sees_an_engine_with_other_weights(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineGeneration, "sync_weights", lambda self: None)
    shift(trainer, "language_model", 0.1)
    with pytest.raises(RuntimeError, match=r"Parity check failed.*\n- log-probs, vLLM: "):
        trainer.train()
