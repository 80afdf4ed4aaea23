"""The evaluation folder: what is written comes back, and what is damaged is named."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.suite.evaluations import TASK, answer, evaluation_record, graded, task_record
from vgpo.run import RunFolderError, storage
from vgpo.suite.folder import EvaluationFolder


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    return EvaluationFolder(tmp_path / "evaluation")


def test_the_record_comes_back_as_it_was_written(folder: EvaluationFolder) -> None:
    task = task_record(9, num_asked=7, oversized=[4], dropped=["row 2, no image"])
    record = evaluation_record({TASK: task}, limit=8)
    folder.write_record(record)
    assert folder.read_record() == record
    assert EvaluationFolder.open(folder.path) == folder


def test_answers_are_appended_and_read_in_order(folder: EvaluationFolder) -> None:
    assert folder.read_answers(TASK) == []
    folder.append_answers(TASK, [answer(0), answer(1)])
    folder.append_answers(TASK, [answer(3), answer(1, sample=1)])
    assert folder.read_answers(TASK) == [answer(0), answer(1), answer(3), answer(1, sample=1)]


def test_an_answer_may_hold_any_text(folder: EvaluationFolder) -> None:
    hostile = answer(0).model_copy(update={"completion": "a\n\u2028\x00 \ud800 </script>"})
    folder.append_answers(TASK, [hostile, answer(1)])
    assert folder.read_answers(TASK) == [hostile, answer(1)]


@pytest.mark.parametrize("num_bytes", [1, 20, -1])
def test_a_torn_last_answer_is_left_out_and_cut_off_by_the_next_one(folder: EvaluationFolder, num_bytes: int) -> None:
    folder.append_answers(TASK, [answer(0), answer(1)])
    path = folder.answers_path(TASK)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:num_bytes])
    assert folder.read_answers(TASK) == [answer(0)]
    folder.append_answers(TASK, [answer(2)])
    assert folder.read_answers(TASK) == [answer(0), answer(2)]


def test_answers_are_on_the_disk_when_the_append_returns(
    folder: EvaluationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    folder.append_answers(TASK, [answer(0)])
    folder.append_answers(TASK, [answer(1)])
    assert synced == [f"{TASK}.jsonl", "answers", f"{TASK}.jsonl"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"row": 1, "sam\n', r"not valid JSON .*; restore or delete it\."),
        (b'{"row": 1, "sample": 0, "completion": "x"}\n', r"truncated: missing; restore or delete it\."),
        (b"[]\n", r"found a list of 0, expected a mapping; restore or delete it\."),
        (b"\xff\n", r"not valid JSON"),
    ],
)
def test_a_damaged_middle_line_is_named(folder: EvaluationFolder, line: bytes, complaint: str) -> None:
    folder.append_answers(TASK, [answer(0), answer(1), answer(2)])
    path = folder.answers_path(TASK)
    first, _, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + last)
    with pytest.raises(RunFolderError, match=rf"^{re.escape(str(path))}, line 2: {complaint}"):
        folder.read_answers(TASK)


def test_a_row_that_is_answered_twice_is_refused(folder: EvaluationFolder) -> None:
    folder.append_answers(TASK, [answer(0), answer(5), answer(5, sample=1), answer(5)])
    with pytest.raises(RunFolderError, match=r"line 4: found row 5, sample 0 a second time, the first is on line 2; "):
        folder.read_answers(TASK)


def test_verdicts_come_back_as_they_were_written(folder: EvaluationFolder) -> None:
    given = [graded(0, correct=True, category="angles", options={"A": "1"}), graded(4, correct=False, predicted=None)]
    folder.write_graded(TASK, given[:1])
    folder.write_graded(TASK, given)
    assert folder.read_graded(TASK) == given


def test_unfinished_verdicts_are_refused_rather_than_counted(folder: EvaluationFolder) -> None:
    folder.write_graded(TASK, [graded(0, correct=True), graded(1, correct=False)])
    path = folder.graded_path(TASK)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=rf"{TASK}\.jsonl ends in an unfinished line; delete it and run"):
        folder.read_graded(TASK)
    path.unlink()
    with pytest.raises(RunFolderError, match=rf"{TASK}\.jsonl is missing; run the same `vgpo eval` command again"):
        folder.read_graded(TASK)


def test_scores_come_back_as_they_were_written(folder: EvaluationFolder) -> None:
    folder.write_scores({"tasks": {TASK: {"accuracy": 0.5, "se": float("nan")}}}, "task,accuracy\ngeometry3k,0.5\n")
    assert folder.read_scores() == {"tasks": {TASK: {"accuracy": 0.5, "se": None}}}
    assert folder.read_score_table() == "task,accuracy\ngeometry3k,0.5\n"


def test_a_full_disk_leaves_the_answers_that_were_there(
    folder: EvaluationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.append_answers(TASK, [answer(0)])

    def write_all(path: Path, data: bytes, append: bool = False) -> None:
        with path.open("ab" if append else "wb") as file:
            file.write(data[:30])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_all", write_all)
    with pytest.raises(RunFolderError) as caught:
        folder.append_answers(TASK, [answer(1)])
    assert str(caught.value) == (
        f"{folder.answers_path(TASK)} could not be written: No space left on device. The existing lines are intact. "
        "Free space on this disk and run the same `vgpo eval` command again, which asks only the rows that are "
        "missing."
    )
    assert folder.read_answers(TASK) == [answer(0)]


def test_an_evaluation_does_not_replace_that_of_a_run(folder: EvaluationFolder) -> None:
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text("model: toy\n")
    folder.record_path.write_text('{"before": null}\n')
    for use in (folder.read_record, lambda: folder.write_record(evaluation_record({}))):
        with pytest.raises(RunFolderError, match=r"holds a run \(config\.yaml\); choose another folder"):
            use()
    assert json.loads(folder.record_path.read_text()) == {"before": None}
    with pytest.raises(RunFolderError, match=r"holds no evaluation: evaluation\.json is missing, or is that of a run"):
        EvaluationFolder.open(folder.path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "found version 2, expected 1; read the evaluation with the vgpo that wrote it"),
        ({"protocol": None}, "protocol: found null, expected text; restore or delete it"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, expected more than 0"),
        ({"tasks": {TASK: {"source": "x"}}}, f"tasks, {TASK}, form: missing"),
        ({"tasks": {"../../etc": task_record(1).model_dump()}}, "tasks, ../../etc"),
        ({"tasks": {"": task_record(1).model_dump()}}, "tasks"),
    ],
)
def test_a_wrong_record_is_named(folder: EvaluationFolder, change: dict[str, Any], complaint: str) -> None:
    folder.write_record(evaluation_record({TASK: task_record(3)}))
    record = json.loads(folder.record_path.read_text()) | change
    folder.record_path.write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match=re.escape(complaint)) as caught:
        folder.read_record()
    assert str(caught.value).startswith(f"{folder.record_path}: ")
