"""Where the adaptive shaping meets a trainer: each rollout batch is seen once, and rows bring their strata."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from torch import Tensor

from tests.trl.tiny import GROUP, rows_with_pictures
from vgpo.shaping import Shaped, Signals
from vgpo.trl import VGPOTrainer

ADAPTIVE: dict[str, Any] = {"shaping": "adaptive", "shaping_options": {"stratum_column": "answer"}}


def record_batches(trainer: VGPOTrainer) -> list[tuple[Tensor, Signals]]:
    """What the shaping is given, call by call."""
    given: list[tuple[Tensor, Signals]] = []
    shape = trainer.shaping.shape

    def recorded(advantages: Tensor, signals: Signals) -> Shaped:
        given.append((advantages, signals))
        return shape(advantages, signals)

    trainer.shaping.shape = recorded  # type: ignore[method-assign]
    return given


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "generations", "rollouts"),
    [
        ({}, 2, 2 * GROUP),
        ({"num_iterations": 2}, 1, 2 * GROUP),
        ({"steps_per_generation": 2}, 1, 4 * GROUP),
        ({"gradient_accumulation_steps": 2}, 2, 4 * GROUP),
        ({"steps_per_generation": 2, "num_iterations": 2, "max_steps": 8}, 2, 4 * GROUP),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 4}, 1, 2 * GROUP),
        ({"dynamic_sampling": True}, 2, 2 * GROUP),
        ({"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": GROUP}, 2, 2 * GROUP),
    ],
    ids=str,
)
def test_each_rollout_batch_is_shaped_once(
    make_trainer: Callable[..., VGPOTrainer], settings: dict[str, Any], generations: int, rollouts: int
) -> None:
    kwargs = {"eval_dataset": rows_with_pictures(2)} if "eval_strategy" in settings else {}
    trainer = make_trainer(**{**ADAPTIVE, **settings}, trainer_kwargs=kwargs)
    given = record_batches(trainer)
    trainer.train()
    assert [len(advantages) for advantages, _ in given] == [rollouts] * generations
    if "eval_strategy" in settings:
        assert sum("eval_loss" in line for line in trainer.state.log_history) == 2


@pytest.mark.train
def test_rows_bring_the_stratum_of_their_value(make_trainer: Callable[..., VGPOTrainer]) -> None:
    dataset = rows_with_pictures()
    names = ["b", "a", "a", "c", "b", "b", "a", "c"]
    trainer = make_trainer(
        dataset=dataset.add_column("source", names), shaping="adaptive", shaping_options={"stratum_column": "source"}
    )
    assert trainer.shaping.strata == ("a", "b", "c")
    drawn: list[int] = []
    roll_out = trainer._roll_out

    def recorded(rows: list[dict[str, Any]]) -> Any:
        drawn.extend(row["row_index"] for row in rows)
        return roll_out(rows)

    trainer._roll_out = recorded  # type: ignore[method-assign]
    given = record_batches(trainer)
    trainer.train()
    found = torch.cat([signals.stratum for _, signals in given])
    assert [trainer.shaping.strata[number] for number in found.tolist()] == [names[row] for row in drawn]
    assert set(trainer.shaping.state_dict()["correlation"]) == {"a", "b", "c"}
    logged = {name for line in trainer.state.log_history for name in line if name.startswith("adaptive/")}
    assert {f"adaptive/{metric}/{name}" for metric in ("strength", "correlation") for name in "abc"} <= logged


def test_strata_need_rows_that_can_be_counted(make_trainer: Callable[..., VGPOTrainer]) -> None:
    rows = rows_with_pictures()
    streamed = IterableDataset.from_generator(lambda: iter(rows), features=rows.features)
    with pytest.raises(ValueError, match="stratum_column='answer' reads the strata of all rows before training"):
        make_trainer(**ADAPTIVE, dataset=streamed)


def test_an_unknown_column_is_refused_before_training(make_trainer: Callable[..., VGPOTrainer]) -> None:
    with pytest.raises(ValueError, match=r"stratum_column='x' is not a column .*'images', 'answer'"):
        make_trainer(shaping="adaptive", shaping_options={"stratum_column": "x"})


@pytest.mark.train
def test_before_anything_is_earned_training_is_that_of_dapo(make_trainer: Callable[..., VGPOTrainer]) -> None:
    def weights(**settings: Any) -> list[Tensor]:
        torch.manual_seed(0)
        trainer = make_trainer(max_steps=1, **settings)
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        found = [value.clone() for value in trainer.model.state_dict().values()]
        trainer.model.load_state_dict(start)
        return found

    slow = {"correlation_rate": 1e-12, "full_correlation": 1.0}
    adaptive, base = weights(shaping="adaptive", shaping_options=slow), weights(shaping="none")
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(adaptive, base, strict=True))
