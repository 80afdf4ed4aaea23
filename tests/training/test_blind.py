"""Answers without images: which rows are asked, and what a guess is worth."""

import pytest
import torch

from vgpo.references import guess_chance
from vgpo.training.blind import TextOnlyAccuracy, separate_draws, shares_right


class OneProcess:
    """A collective of one process."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


@pytest.mark.parametrize(
    ("problem", "answer", "chance"),
    [
        ("Which? (A) 3 (B) 4 (C) 5 (D) 6", "B", 1 / 4),
        ("Which?\nA. 3\nB. 4", "(A)", 1 / 2),
        ("Which?\n(A) red\n(B) blue\n(C) green", "C", 1 / 3),
        ("How many?", "3", 0.0),
        ("Which? (A) 3 (B) 4", "4", 0.0),  # the reference is the text of the option, which nobody guesses
        ("Which? (A) 3 (C) 5", "A", 0.0),  # no list of options
        ("Which? (A) 3 (B) 4", "D", 0.0),
        ("Which? (A) 3 (B) 4", 3, 0.0),
    ],
)
def test_chance_of_a_guess(problem, answer, chance):
    assert guess_chance(problem, answer) == pytest.approx(chance)


def test_rows_with_images_are_asked_once():
    accuracy, asked = TextOnlyAccuracy(2, OneProcess()), []

    def answer(places):
        asked.append(places)
        return [0.5] * len(places)

    accuracy.add_missing([7, 7, 3, 5], [True, True, True, False], answer)
    accuracy.add_missing([7, 3], [True, True], answer)
    accuracy.add_missing([9, 7], [True, True], answer)
    assert asked == [[1, 2], [0]]
    assert accuracy.shares == {7: 0.5, 3: 0.5, 9: 0.5}
    rows = [{"row_index": row, "problem": "", "answer": "1"} for row in (3, 5, 9)]
    signals = accuracy.signals(rows, torch.zeros(3))
    assert signals["text_only_accuracy"].tolist() == [0.5, 0.0, 0.5]
    assert signals["chance"].tolist() == [0.0, 0.0, 0.0]


def test_a_process_that_misses_nothing_keeps_the_others_company():
    class Others(OneProcess):
        world_size = 2

        def gather_rows(self, rows):
            other = (
                torch.tensor([2]) if rows.numel() == 1 and asked == [] else torch.tensor([11, 12], dtype=rows.dtype)
            )
            return torch.cat([rows, other])

    asked: list = []
    accuracy = TextOnlyAccuracy(2, Others(), {7: 1.0})

    def answer(places):
        asked.append(places)
        return [0.0] * len(places)

    accuracy.add_missing([7, 7], [True, True], answer)
    assert asked == [[0, 0]]
    assert accuracy.shares[7] == 1.0  # what is known stays
    assert {11, 12} <= accuracy.shares.keys()


def test_draws_are_apart_and_repeat():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with separate_draws(5, [1, 2], 0):
        first = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with separate_draws(5, [1, 2], 0):
        assert torch.equal(torch.rand(3), first)
    with separate_draws(5, [1, 3], 0):
        assert not torch.equal(torch.rand(3), first)


def test_a_reward_is_called_as_by_the_trainer():
    def reward(prompts, completions, completion_ids, answer, log_metric, **kwargs):
        log_metric("x", 1.0)
        assert prompts == ["p", "p", "q", "q"]
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    rows = [{"prompt": "p", "answer": "1", "row_index": 0}, {"prompt": "q", "answer": "2", "row_index": 1}]
    assert shares_right(reward, rows, ["1", "3", "2", "2"], [[]] * 4) == [0.5, 1.0]
