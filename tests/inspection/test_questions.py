"""The responses that a run stored, as questions to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.families.build import picture
from tests.inspection.small import read_by, row, small_model
from tests.report.run_records import Rollout, handed_over, rollout
from vgpo.inspection.questions import StoredRolloutsError, questions_of, stored_questions
from vgpo.run import RunFolder

FIRST, SECOND = picture(56, 28, seed=1), picture(28, 28, seed=2)


def run_with(folder: Path, rollouts: Sequence[Rollout]) -> RunFolder:
    run = RunFolder.create(folder, {"template": "plain"}, seed=0, command=["vgpo"])
    run.write_rollouts(*handed_over(rollouts))
    return run


def record(step: int, group: int, text: str, tokenizer: Any, **changes: Any) -> Rollout:
    ids = tokenizer(text)["input_ids"]
    tokens = [tokenizer.decode([token]) for token in ids]
    told = {
        "images": [FIRST],
        "token_ids": ids,
        "tokens": tokens,
        "completion": tokenizer.decode(ids, skip_special_tokens=True),
    }
    return rollout(step, group, **{**told, "row": 10 * step + group, **changes})


def test_the_newest_groups_before_a_checkpoint(tmp_path: Path) -> None:
    tokenizer = small_model()[1].tokenizer
    texts = {(2, 0): ["row 1: 7", "sum 8<|im_end|>"], (2, 1): ["total 9"], (4, 0): ["the"], (6, 5): ["digit"]}
    records = [
        record(*key, text, tokenizer, advantage=i - 0.5)
        for key, group in texts.items()
        for i, text in enumerate(group)
    ]
    run = run_with(tmp_path / "run", records)
    found = stored_questions(run, tmp_path / "checkpoint-4", "plain", range(50))
    assert found.numbers == [40, 20, 21]
    assert [[tokenizer.decode(one.token_ids) for one in group] for group in found.stored] == [
        texts[4, 0], texts[2, 0], texts[2, 1]
    ]  # fmt: skip
    assert [one.advantage for one in found.stored[1]] == [-0.5, 0.5]
    some = stored_questions(run, tmp_path / "final", "plain", [0, 2, 99])
    assert some.numbers == [65, 20]
    questions = list(questions_of(found.rows, found.numbers, ablations=("blank",), stored=found.stored))
    assert [question.number for question in questions] == found.numbers
    assert questions[0].row["images"][0].tobytes() == FIRST.tobytes()
    assert questions[0].others["blank"]["images"][0].getextrema() == ((0, 0),) * 3


def test_stored_pictures_stay_in_the_order_of_their_marks(tmp_path: Path) -> None:
    tokenizer = small_model()[1].tokenizer
    problem = "First <image 2>, then <image 1>: which?"
    run = run_with(tmp_path / "run", [record(1, 0, "the", tokenizer, problem=problem, images=[FIRST, SECOND])])
    (question,) = stored_questions(run, tmp_path / "final", "plain", [0]).rows
    assert [image.size for image in question["images"]] == [FIRST.size, SECOND.size]
    kinds = [part.get("text", part["type"]) for part in question["prompt"][0]["content"]]
    assert kinds == ["First ", "image", ", then ", "image", ": which?"]


def test_rollouts_of_an_older_version_are_refused(tmp_path: Path) -> None:
    tokenizer = small_model()[1].tokenizer
    records = [record(1, 0, "row 1: 7", tokenizer), record(1, 1, "row 1: 7", tokenizer, token_ids=None)]
    run = run_with(tmp_path / "run", records)
    assert stored_questions(run, tmp_path / "final", "plain", [0]).numbers == [10]
    with pytest.raises(
        StoredRolloutsError, match=r"rollouts\.jsonl: found a rollout of step 1 without token_ids.*--data"
    ):
        stored_questions(run, tmp_path / "final", "plain", [0, 1])


def test_a_run_without_rollouts_is_said(tmp_path: Path) -> None:
    tokenizer = small_model()[1].tokenizer
    run = run_with(tmp_path / "run", [record(8, 0, "the", tokenizer)])
    with pytest.raises(StoredRolloutsError, match=r"has 0 groups of rollouts up to checkpoint-4.*--data"):
        stored_questions(run, tmp_path / "checkpoint-4", "plain", range(50))


def test_stored_responses_are_read_as_they_are() -> None:
    model, processor = small_model()
    asked = row("What is the sum of row", [Image.new("RGB", (56, 56), "white")])
    texts = ["row 1: 7", "the total is 9<|im_end|>"]
    ids = [processor.tokenizer(text)["input_ids"] for text in texts]
    found = read_by(model, processor, asked, ids)
    assert ["".join(one["tokens"]) for one in found["rollouts"]] == texts
    # The advantages are those of the run: 0 and 1.
    assert set(found["rollouts"][0]["advantage"]) == {0.0}
    assert sum(found["rollouts"][1]["advantage"]) > 0
