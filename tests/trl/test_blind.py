"""The blind gate: prompts are asked once without their images, and nothing else of a run changes."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from datasets import IterableDataset

from tests.trl.tiny import coin, rows_with_pictures, told
from vgpo.training.blind import ignore
from vgpo.trl import VGPOTrainer

GIVEN = {"earned": False, "forgetting": "given"}
BLIND = {**GIVEN, "blind_gate": True}


def is_blind(log_metric: Any) -> bool:
    return log_metric is ignore


def needs_image(completion_ids: list[list[int]], log_metric: Any = None, **kwargs: Any) -> list[float]:
    """As `coin`, and never right without the image."""
    return [0.0] * len(completion_ids) if is_blind(log_metric) else coin(completion_ids)


def knows_all(completion_ids: list[list[int]], log_metric: Any = None, **kwargs: Any) -> list[float]:
    """As `coin`, and always right without the image."""
    return [1.0] * len(completion_ids) if is_blind(log_metric) else coin(completion_ids)


def trained(make_trainer: Callable[..., VGPOTrainer], reward: Any, **settings: Any) -> VGPOTrainer:
    trainer = make_trainer(reward=reward, **settings)
    trainer.train()
    return trainer


def weights(trainer: VGPOTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.train
def test_a_prompt_that_is_never_answered_blind_leaves_the_run_as_it_was(
    make_trainer: Callable[..., VGPOTrainer], model: torch.nn.Module
) -> None:
    gated = trained(make_trainer, needs_image, policy=deepcopy(model), shaping="adaptive", shaping_options=BLIND)
    plain = trained(make_trainer, needs_image, policy=deepcopy(model), shaping="adaptive", shaping_options=GIVEN)
    assert set(gated._blind.shares.values()) == {0.0}
    assert torch.equal(weights(gated), weights(plain))
    extra = {"adaptive/text_only_accuracy"}
    lines = [
        {name: value for name, value in line.items() if name not in extra} for line in told(gated.state.log_history)
    ]
    assert lines == told(plain.state.log_history)


@pytest.mark.train
def test_a_prompt_that_is_always_answered_blind_is_trained_as_by_dapo(
    make_trainer: Callable[..., VGPOTrainer], model: torch.nn.Module
) -> None:
    gated = trained(make_trainer, knows_all, policy=deepcopy(model), shaping="adaptive", shaping_options=BLIND)
    plain = trained(make_trainer, knows_all, policy=deepcopy(model), shaping="none")
    assert set(gated._blind.shares.values()) == {1.0}
    assert torch.equal(weights(gated), weights(plain))


@pytest.mark.train
def test_each_row_is_asked_once_and_stays_known(make_trainer: Callable[..., VGPOTrainer]) -> None:
    asked: list[str] = []

    def recorded(
        completion_ids: list[list[int]], answer: list[str], log_metric: Any = None, **kwargs: Any
    ) -> list[float]:
        if is_blind(log_metric):
            asked.extend(answer)
        return coin(completion_ids)

    settings = {"shaping": "adaptive", "shaping_options": {**BLIND, "blind_rollouts": 3}, "max_steps": 6}
    trainer = trained(make_trainer, recorded, **settings)
    assert sorted(asked) == sorted(3 * [str(row) for row in trainer._blind.shares])
    resumed = make_trainer(reward=recorded, **settings)
    resumed.load_step_state(trainer.step_state())
    assert resumed._blind.shares == trainer._blind.shares


async def slow(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return coin(completion_ids)


@pytest.mark.train
def test_a_reward_that_cannot_grade_is_refused(make_trainer: Callable[..., VGPOTrainer]) -> None:
    with pytest.raises(ValueError, match="'slow', which is asynchronous; expected a function"):
        make_trainer(reward=slow, shaping="adaptive", shaping_options=BLIND)


@pytest.mark.train
def test_streamed_rows_are_refused(make_trainer: Callable[..., VGPOTrainer]) -> None:
    stream = IterableDataset.from_generator(lambda: iter(rows_with_pictures()))
    with pytest.raises(ValueError, match="blind_gate keeps what it has sampled for a row by number"):
        make_trainer(dataset=stream, shaping="adaptive", shaping_options=BLIND)
