"""The blind gate without a trainer: who asks what, what is kept, and what the grader gets."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vgpo.policy.ablation import TextOnly
from vgpo.policy.prompts import EncodedPrompt
from vgpo.training.blind import BlindGate, TextOnlyHost, check_blind_gate, sampling_seed
from vgpo.training.collective import SingleProcess

IMAGE = 9  # its token
MODEL = nn.Linear(1, 1)


class Processes:
    """Two processes as threads that wait for each other whenever they gather."""

    def __init__(self) -> None:
        self.barrier = Barrier(2, timeout=10)
        self.rows: list[Tensor] = [torch.empty(0)] * 2

    def of(self, rank: int) -> Any:
        def gather_rows(rows: Tensor) -> Tensor:
            self.rows[rank] = rows
            self.barrier.wait()
            gathered = torch.cat(self.rows)
            self.barrier.wait()
            return gathered

        return SimpleNamespace(rank=rank, world_size=2, gather_rows=gather_rows)


class Trainer:
    """Answers an odd row right in one of two responses, and an even row never."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.rewarded: dict[str, Any] = {}
        self.draws: list[float] = []

    def fetch(self, rows: Any) -> list[dict[str, Any]]:
        self.asked.append(list(rows))
        return [{"prompt": f"Row {row}\nA. x\nB. y", "answer": "B" if row > 2 else "7", "row": row} for row in rows]

    def sample(self, ids: list[list[int]], fields: dict[str, Any], num_rollouts: int) -> list[list[int]]:
        assert not any(IMAGE in prompt for prompt in ids)
        self.draws.append(float(torch.rand(1)))
        return [[*prompt, number % num_rollouts] for number, prompt in enumerate(ids)]

    def reward(self, completion_ids: list[list[int]], row: list[int], **kwargs: Any) -> list[float | None]:
        self.rewarded = {"completion_ids": completion_ids, "row": row, **kwargs}
        kwargs["log_metric"]("asked", 1.0)
        return [1.0 if ids[-1] == 0 and number % 2 else None for ids, number in zip(completion_ids, row, strict=True)]

    def host(self) -> TextOnlyHost:
        tokenizer = SimpleNamespace(
            batch_decode=lambda ids, skip_special_tokens: [str(row) for row in ids],
            decode=lambda ids, skip_special_tokens: "Which?\nA. x\nB. y",
        )
        return TextOnlyHost(
            reward=self.reward, tokenizer=tokenizer, model=lambda: MODEL, trainer_state=lambda: None,
            fetch=self.fetch, sample=self.sample, phase=lambda name: nullcontext(),
        )  # fmt: skip

    def gate(self, collective: Any = None, num_rollouts: int = 2) -> BlindGate:
        return BlindGate(num_rollouts, TextOnly([IMAGE]), 0, collective or SingleProcess(), self.host())


def batch(*rows: int, text: int = -1) -> dict[str, Any]:
    """Rollouts of rows of the dataset; those of row `text` have no image."""
    prompts = [EncodedPrompt([1, IMAGE, row], 1, {"pixel_values": torch.zeros(1)}, {}) for row in rows]
    return {
        "row_index": torch.tensor(rows),
        "visual_rows": torch.tensor([row != text for row in rows]),
        "prompts": prompts,
    }


def test_a_prompt_is_asked_once_and_its_accuracy_and_chance_are_those_of_all_its_rollouts() -> None:
    trainer = Trainer()
    gate = trainer.gate()
    signals = gate.signals(batch(3, 3, 2, 2))
    assert signals["text_only_accuracy"].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert signals["chance"].tolist() == [0.5, 0.5, 0.0, 0.0]
    gate.signals(batch(2, 3))
    gate.signals(batch(5, 2))
    assert trainer.asked == [[3, 2], [5]]
    ratio = gate.statistics({**batch(3, 2, 7, text=7), "text_only_accuracy": torch.tensor([0.5, 0.0, 0.0])})
    ((total, number),) = [(value.total, value.number) for value in ratio.values()]
    assert (float(total), float(number)) == (0.5, 2.0)


def test_the_grader_gets_the_columns_of_each_response() -> None:
    trainer = Trainer()
    trainer.gate().signals(batch(3, 2))
    given = trainer.rewarded
    assert given["row"] == [3, 3, 2, 2]
    assert given["answer"] == ["B", "B", "7", "7"]
    assert given["completions"] == [str(ids) for ids in given["completion_ids"]]
    assert len(given["prompts"]) == 4
    assert "prompt" not in given


def test_rows_without_an_image_are_0_and_are_not_asked() -> None:
    trainer = Trainer()
    signals = trainer.gate().signals(batch(1, 3, text=3))
    assert trainer.asked == [[1]]
    assert signals["text_only_accuracy"].tolist() == [0.5, 0.0]
    assert signals["chance"].tolist() == [0.0, 0.0]


def test_sampling_is_seeded_by_run_and_rows_and_leaves_the_random_state() -> None:
    draws = []
    for start in (1, 2):
        trainer = Trainer()
        torch.manual_seed(start)
        expected = torch.rand(1)
        torch.manual_seed(start)
        trainer.gate().signals(batch(3, 2))
        assert torch.equal(torch.rand(1), expected)
        draws += trainer.draws
    assert draws[0] == draws[1]
    seeds = {sampling_seed(seed, rows) for seed in (0, 1) for rows in ([3, 2], [2, 3], [3])}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_processes_ask_as_many_prompts_and_know_what_the_others_found() -> None:
    processes, trainers = Processes(), [Trainer(), Trainer()]
    gates = [trainer.gate(processes.of(rank)) for rank, trainer in enumerate(trainers)]

    def signals(*batches: dict[str, Any]) -> list[dict[str, list[float]]]:
        with ThreadPoolExecutor(2) as threads:
            found = threads.map(lambda gate, rows: gate.signals(rows), gates, batches)
            return [{name: value.tolist() for name, value in one.items()} for one in found]

    found = signals(batch(1, 1, 2, 3), batch(3, 3, 4, 4))  # row 3 is on both
    assert [trainer.asked for trainer in trainers] == [[[1, 2, 3]], [[4, 3, 3]]]
    assert found[0]["text_only_accuracy"] == [0.5, 0.5, 0.0, 0.5]
    assert found[1]["text_only_accuracy"] == [0.5, 0.5, 0.0, 0.0]
    assert found[1]["chance"] == [0.5] * 4
    assert gates[0].state() == gates[1].state()
    signals(batch(4, 4, 4, 4), batch(1, 1, 2, 2))
    assert [len(trainer.asked) for trainer in trainers] == [1, 1]


def test_what_was_found_is_restored_with_the_same_number_of_rollouts() -> None:
    trainer = Trainer()
    gate = trainer.gate()
    gate.signals(batch(3, 2))
    other = Trainer()
    restored = other.gate()
    restored.load_state(gate.state())
    assert restored.signals(batch(3))["text_only_accuracy"].tolist() == [0.5]
    assert not other.asked
    with pytest.raises(ValueError, match=r"blind_rollouts=2, and the run has blind_rollouts=3\. Resume with the"):
        Trainer().gate(num_rollouts=3).load_state(gate.state())
    with pytest.raises(ValueError, match="was saved without blind_gate, and the run has blind_gate: true"):
        gate.load_state(None)


def test_a_reward_of_another_length_is_an_error() -> None:
    trainer = Trainer()
    trainer.reward = lambda **kwargs: [1.0]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="returned 1 rewards, expected 2"):
        trainer.gate().signals(batch(3))


@pytest.mark.parametrize(
    ("reward", "tokenizer", "flags", "message"),
    [
        (nn.Linear(1, 1), {}, {}, "the reward model 'judge' as accuracy reward. Set filter_reward"),
        (print, {"response_schema": {}}, {}, None),
        (print, {"response_schema": {"x": 1}}, {}, "parses responses (['response_schema'])"),
        (print, {}, {"has_row_numbers": False}, "rows have no number"),
        (print, {}, {"only_samples": False}, "tools, environments or a rollout_func"),
    ],
)
def test_what_it_does_not_work_with(reward: Any, tokenizer: Any, flags: dict[str, bool], message: str | None) -> None:
    host = TextOnlyHost(**{**vars(Trainer().host()), "reward": reward, "tokenizer": SimpleNamespace(**tokenizer)})
    flags = {"has_row_numbers": True, "only_samples": True, **flags}
    if message is None:
        check_blind_gate(host, "judge", **flags)
        return
    with pytest.raises(ValueError, match=f"blind_gate does not work with .*{re.escape(message)}"):
        check_blind_gate(host, "judge", **flags)
