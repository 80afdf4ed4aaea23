"""The blind gate of the adaptive shaping: prompts are asked once without their images, and nothing else moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trl.tiny import GROUP, coin, mixed_rows, rows_with_pictures, told
from vgpo.metric_names import ADAPTIVE_TEXT_ONLY_ACCURACY
from vgpo.training import blind
from vgpo.training.blind import TextOnlyRequest, answer_text_only
from vgpo.trl import VGPOTrainer

GATE = {"blind_gate": True, "blind_rollouts": 2}
SHAPING = {"shaping": "adaptive", "shaping_options": {**GATE, "earned": False}}


class Counted(VGPOTrainer):
    """Keeps the last batch with its signals, and the requests of the blind gate."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: list[TextOnlyRequest] = []

    def _generation_batch(self, loaded: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blind, "answer_text_only", self.answer)
            self.batch = super()._generation_batch(loaded)
        return self.batch

    def answer(self, request: TextOnlyRequest, host: blind.TextOnlyHost) -> Any:
        self.requests.append(request)
        return answer_text_only(request, host)


class Asked:
    """A reward that is `coin` for rollouts, and a constant for responses without images."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self.__name__ = "accuracy"

    def __call__(self, completion_ids: list[list[int]], log_metric: Any, log_extra: Any, **kwargs: Any) -> list[float]:
        log_metric("asked", 1.0)
        log_extra("asked", [""] * len(completion_ids))
        is_rollout = len(set(kwargs["row_index"])) * GROUP == len(completion_ids)  # K of a row otherwise
        return coin(completion_ids) if is_rollout else [self.constant] * len(completion_ids)


def weights(trainer: VGPOTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.train
def test_each_prompt_is_asked_once(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(Counted, dataset=rows_with_pictures(4), max_steps=6, **SHAPING)
    trainer.train()
    asked = [row for request in trainer.requests for row in request.rows]
    assert sorted(asked) == [0, 1, 2, 3]
    assert all(not prompt.media and prompt.num_images == 0 for r in trainer.requests for prompt in r.prompts)
    banned = set(trainer._banned_token_ids)
    assert not any(banned & set(prompt.token_ids) for r in trainer.requests for prompt in r.prompts)
    values = [line[ADAPTIVE_TEXT_ONLY_ACCURACY] for line in trainer.state.log_history if "loss" in line]
    assert len(values) == 6
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.train
@pytest.mark.parametrize("sizes", [{}, {"per_device_train_batch_size": GROUP // 2, "gradient_accumulation_steps": 4}])
def test_a_gate_that_stays_open_changes_nothing(
    make_trainer: Callable[..., Any], model: torch.nn.Module, sizes: dict[str, int]
) -> None:
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    runs = []
    for options in ({"earned": False}, SHAPING["shaping_options"]):
        model.load_state_dict(start)
        trainer = make_trainer(
            Counted, reward=Asked(0.0), max_steps=3, shaping="adaptive", shaping_options=options, **sizes
        )
        trainer.train()
        runs.append((weights(trainer), told(trainer.state.log_history)))
    assert trainer.requests
    (plain, plain_log), (gated, gated_log) = runs
    assert all(torch.equal(plain[name], gated[name]) for name in plain)
    assert {line.pop(ADAPTIVE_TEXT_ONLY_ACCURACY, None) for line in gated_log} == {0.0, None}
    assert gated_log == plain_log


@pytest.mark.train
def test_a_closed_gate_leaves_the_advantages_as_they_are(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(Counted, reward=Asked(1.0), max_steps=1, **SHAPING)
    trainer.train()
    assert trainer.batch["text_only_accuracy"].eq(1).all()
    assert trainer.batch["chance"].eq(0).all()
    assert trainer.state.log_history[0]["shaping/token_factor_spread"] == 0


@pytest.mark.train
def test_rows_without_an_image_are_not_asked(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(Counted, reward=Asked(1.0), dataset=mixed_rows(4), max_steps=2, **SHAPING)
    trainer.train()
    assert sorted(row for request in trainer.requests for row in request.rows) == [0, 2]
    accuracy, visual = trainer.batch["text_only_accuracy"], trainer.batch["visual_rows"]
    assert torch.equal(accuracy.bool(), visual)


@pytest.mark.train
def test_dynamic_sampling_asks_for_the_groups_that_are_kept(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(Counted, max_steps=1, dynamic_sampling=True, **SHAPING)
    trainer.train()
    asked = [row for request in trainer.requests for row in request.rows]
    assert sorted(asked) == sorted(set(trainer.batch["row_index"].tolist()))


@pytest.mark.train
def test_chance_of_multiple_choice(make_trainer: Callable[..., Any]) -> None:
    rows = rows_with_pictures(2)
    rows = rows.remove_columns("answer").add_column("answer", ["B", "3"])
    rows = rows.add_column("problem", ["Which?\nA. one\nB. two\nC. three\nD. four", "Which?\nA. one\nB. two"])
    trainer = make_trainer(Counted, dataset=rows, max_steps=1, **SHAPING)
    trainer.train()
    chance = dict(zip(trainer.batch["row_index"].tolist(), trainer.batch["chance"].tolist(), strict=True))
    assert chance == {0: 0.25, 1: 0.0}


@pytest.mark.train
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    settings = {
        "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "dataset": rows_with_pictures(6),
        "per_device_train_batch_size": GROUP, "steps_per_generation": 2, **SHAPING,
    }  # fmt: skip
    whole = make_trainer(Counted, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    torch.manual_seed(1234)
    resumed = make_trainer(Counted, output_dir=str(tmp_path / "again"), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._blind_gate.state() == whole._blind_gate.state()
    before = {row for request in whole.requests for row in request.rows}
    again = {row for request in resumed.requests for row in request.rows}
    assert len(again) < len(before)
    assert told(resumed.state.log_history) == told(whole.state.log_history)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataset": rows_with_pictures(4).to_iterable_dataset()}, "rows have no number"),
        ({"trainer_kwargs": {"rollout_func": lambda prompts, trainer: {}}}, "a rollout_func"),
    ],
)
def test_what_the_gate_cannot_do_is_an_error(
    make_trainer: Callable[..., Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"blind_gate does not work with .*{message}.*, or set blind_gate to false"):
        make_trainer(**kwargs, **SHAPING)


def test_an_async_accuracy_reward_is_an_error(make_trainer: Callable[..., Any]) -> None:
    async def judged(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"the async reward 'judged' as accuracy reward\. Set filter_reward"):
        make_trainer(reward=judged, **SHAPING)
