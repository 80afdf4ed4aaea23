"""An evaluation on a suite: scores, what is kept, and what a second start does."""

import gc
import io
import json
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from rich.console import Console

from vgpo.data import AS_IT_IS, DataError
from vgpo.evaluation.completions import Completion
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scores import SuiteScores
from vgpo.recipe.policies import TransformersPolicy
from vgpo.suite import progress, run, subject
from vgpo.suite.comparison import page_data
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite
from vgpo.toy import checkpoint_path

Make = Callable[..., SuiteRequest]


def evaluated(request: SuiteRequest) -> SuiteScores:
    return evaluate_suite(request, Console(quiet=True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The problems of each batch that the model is asked from now on."""
    batches: list[list[str]] = []
    complete = TransformersPolicy.complete

    def noted(self: TransformersPolicy, rows: list[Any], **options: Any) -> list[Completion]:
        batches.append([row["prompt"][0]["content"][-1]["text"] for row in rows])
        return complete(self, rows, **options)

    monkeypatch.setattr(TransformersPolicy, "complete", noted)
    return batches


def test_answers_are_those_of_one_question_at_a_time_and_scores_follow(
    request_for: Make, completions: tuple[datasets.Dataset, list[str]]
) -> None:
    request = request_for()
    scores = evaluated(request)
    folder = EvaluationFolder(request.out)
    found = [
        answer.completion for task in ("geometry3k", "counting") for answer in sorted_answers(folder.read_graded(task))
    ]
    assert found == completions[1]
    assert [(task.task, task.num_correct, task.num_asked, task.accuracy) for task in scores.tasks] == [
        ("geometry3k", 4, 6, pytest.approx(4 / 6)),
        ("counting", 4, 6, pytest.approx(4 / 6)),
    ]
    assert json.loads(folder.scores_path.read_text())["protocol"] == "papo-greedy"
    assert "papo-greedy,geometry3k" in folder.score_table_path.read_text()


def sorted_answers(answers: list[Any]) -> list[Any]:
    return sorted(answers, key=lambda answer: (answer.row, answer.sample))


def test_logs_have_the_scores_and_no_image(request_for: Make) -> None:
    request = request_for(tasks=["counting"])
    evaluated(request)
    (info,) = list_eval_logs(str(EvaluationFolder(request.out).logs_path))
    log = read_eval_log(info.name)
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(4 / 6)
    assert log.eval.metadata is not None
    assert log.eval.metadata["protocol"] == "papo-greedy"
    assert "base64," not in log.model_dump_json()


def test_the_same_command_again_asks_nothing_and_finds_the_same(request_for: Make, asked: list[list[str]]) -> None:
    request = request_for()
    first = evaluated(request)
    assert sum(map(len, asked)) == 12
    asked.clear()
    assert evaluated(request) == first
    assert asked == []


def test_answers_that_are_missing_are_asked_and_no_other(request_for: Make, asked: list[list[str]]) -> None:
    request = request_for()
    first = evaluated(request)
    folder = EvaluationFolder(request.out)
    path = folder.answers_path("counting")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote
    shutil.rmtree(folder.graded_path("counting").parent)
    asked.clear()
    assert evaluated(request) == first
    assert sum(map(len, asked)) == 3
    answers = folder.read_answers("counting")
    assert sorted((answer.row, answer.sample) for answer in answers) == [(row, 0) for row in range(6)]


def test_an_error_while_answering_keeps_the_answers_before_it(
    request_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, calls = TransformersPolicy.complete, iter(range(9))

    def fails_later(self: TransformersPolicy, rows: list[Any], **options: Any) -> list[Completion]:
        if next(calls) == 1:
            raise MemoryError("no memory for the second batch")
        return complete(self, rows, **options)

    request = request_for(tasks=["counting"])
    with monkeypatch.context() as patch:
        patch.setattr(TransformersPolicy, "complete", fails_later)
        with pytest.raises(EvaluationError, match="no memory for the second batch") as error:
            evaluated(request)
    assert "run the same command to resume" in str(error.value)
    assert len(EvaluationFolder(request.out).read_answers("counting")) == 4
    assert evaluated(request).tasks[0].num_correct == 4


@pytest.mark.parametrize("logs", [[], [SimpleNamespace(status="cancelled")]])
def test_an_interrupted_task_is_an_interrupt(
    request_for: Make, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setattr(run, "evaluate_task", lambda *args, **options: logs)
    with pytest.raises(KeyboardInterrupt):
        evaluated(request_for(tasks=["counting"]))


def test_further_tasks_are_added_and_the_earlier_ones_stay_with_their_scores(
    request_for: Make, asked: list[list[str]]
) -> None:
    evaluated(request_for(tasks=["counting"]))
    asked.clear()
    request = request_for(tasks=["geometry3k"])
    assert [task.task for task in evaluated(request).tasks] == ["geometry3k", "counting"]
    assert sum(map(len, asked)) == 6
    folder = EvaluationFolder(request.out)
    assert list(folder.read_record().tasks) == ["counting", "geometry3k"]
    assert [task["task"] for task in folder.read_scores()["tasks"]] == ["geometry3k", "counting"]


def test_a_checkpoint_that_was_moved_is_the_same(request_for: Make, tmp_path: Path, asked: list[list[str]]) -> None:
    shutil.copytree(checkpoint_path(), tmp_path / "one")
    evaluated(request_for(tasks=["counting"], checkpoint=str(tmp_path / "one")))
    (tmp_path / "one").rename(tmp_path / "two")
    asked.clear()
    evaluated(request_for(tasks=["counting"], checkpoint=f"{tmp_path / 'two'}/"))
    assert asked == []


def test_threads_and_the_model_end_with_an_evaluation(request_for: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[weakref.ref[TransformersPolicy]] = []
    prepare = TransformersPolicy.__init__

    def noted(self: TransformersPolicy, checkpoint: Any) -> None:
        policies.append(weakref.ref(self))
        prepare(self, checkpoint)

    monkeypatch.setattr(TransformersPolicy, "__init__", noted)
    before = set(threading.enumerate())
    evaluated(request_for())
    for _ in range(100):
        gc.collect()
        threads = [one for one in set(threading.enumerate()) - before if one.name == "vgpo-batches"]
        if not threads and policies[0]() is None:
            break
        time.sleep(0.05)
    assert (len(policies), threads, policies[0]()) == (1, [], None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "bogus"}, "--engine bogus: Model API bogus of model 'bogus/toy' not recognized"),
        (
            {"engine": "openai-api/keyless"},
            "--engine openai-api/keyless: Unable to initialise keyless client No KEYLESS_API_KEY defined in the "
            "environment. Correct that, or name another engine: transformers, vllm, or a provider of inspect-ai.",
        ),
        ({"engine": "openai-api/local", "dtype": "bfloat16"}, "--dtype has no effect with --engine openai-api/local"),
        ({"engine": "openai-api/local", "max_pixels": 9}, "--max-pixels has no effect with --engine openai-api/local"),
    ],
)
def test_an_engine_that_cannot_be_used_leaves_nothing(request_for: Make, fields: dict[str, Any], message: str) -> None:
    request = request_for(tasks=["counting"], **fields)
    with pytest.raises(EvaluationError, match=re.escape(message)):
        evaluated(request)
    assert not EvaluationFolder(request.out).record_path.exists()


def test_a_log_without_a_terminal_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with progress.progress_over(8, Console(file=file, width=120)) as shown:
        shown.begin("MathVista")
        for _ in range(3):
            shown.advance(2)
    assert file.getvalue() == "MathVista: 4 of 8 answers of all tasks, about 1 min left\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "lenient"}, "protocol: found 'papo-greedy', expected 'lenient'"),
        ({"template": "think_boxed"}, "template: found 'plain', expected 'think_boxed'"),
        ({"max_new_tokens": 8}, "max_new_tokens: found 96, expected 8"),
        ({"max_pixels": 3136}, "image_size: found "),
        ({"limit": 3}, "limit: found None, expected 3"),
        ({"seed": 1}, "seed: found 0, expected 1"),
        ({"dtype": "bfloat16"}, "dtype: found 'auto', expected 'bfloat16'"),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused_and_nothing_is_lost(
    request_for: Make, changed: dict[str, Any], message: str
) -> None:
    request = request_for(tasks=["counting"])
    evaluated(request)
    before = {path: path.read_bytes() for path in sorted(request.out.rglob("*")) if path.is_file()}
    with pytest.raises(EvaluationError) as error:
        evaluated(request_for(tasks=["counting"], **changed))
    assert message in str(error.value)
    assert {path: path.read_bytes() for path in sorted(request.out.rglob("*")) if path.is_file()} == before


def test_other_rows_and_another_checkpoint_of_the_same_name_are_refused(
    request_for: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_path(), checkpoint)
    request = request_for(tasks=["counting"], checkpoint=str(checkpoint))
    evaluated(request)
    rows = datasets.Dataset.from_parquet(str(folder / "counting.parquet"))
    rows.select(range(5)).to_parquet(folder / "counting.parquet")
    with pytest.raises(EvaluationError, match="rows of counting"):
        evaluated(request)
    rows.to_parquet(folder / "counting.parquet")
    (checkpoint / "generation_config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="checkpoint_digest"):
        evaluated(request)


def test_samples_are_averaged_and_resumed_one_by_one(request_for: Make, asked: list[list[str]]) -> None:
    request = request_for(tasks=["counting"], protocol="papo-avg@3")
    scores = evaluated(request).tasks[0]
    assert (scores.num_samples, scores.num_asked) == (3, 6)
    assert scores.accuracy == pytest.approx(scores.num_correct / 18)
    path = EvaluationFolder(request.out).answers_path("counting")
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 18
    path.write_text("".join(lines[:17]))
    asked.clear()
    again = evaluated(request).tasks[0]
    assert sum(map(len, asked)) == 1
    assert abs(again.num_correct - scores.num_correct) <= 1


def test_a_prompt_that_fills_the_context_counts_as_wrong_and_is_in_the_record(request_for: Make, folder: Path) -> None:
    rows = datasets.Dataset.from_parquet(str(folder / "counting.parquet"))
    long = rows.map(lambda row, number: {"problem": row["problem"] + " 1" * (2000 * (number == 0))}, with_indices=True)
    long.to_parquet(folder / "counting.parquet")
    request = request_for(tasks=["counting"])
    scores = evaluated(request).tasks[0]
    assert (scores.num_asked, scores.num_oversized, scores.num_scored) == (5, 1, 6)
    assert scores.num_correct == 3
    evaluation = EvaluationFolder(request.out)
    assert evaluation.read_record().tasks["counting"].oversized == [0]
    data = page_data([evaluation, EvaluationFolder(shutil.copytree(request.out, request.out.with_name("copy")))])
    [task] = data["tasks"]
    assert [one["accuracy"] for one in task["scores"]] == [scores.accuracy] * 2
    assert (task["difference"]["num_rows"], data["num_rows"], data["without_images"]) == (6, 6, [])


def test_a_row_that_cannot_be_used_is_named_and_counts_as_wrong(request_for: Make, folder: Path) -> None:
    rows = datasets.Dataset.from_parquet(str(folder / "counting.parquet"))
    rows.map(lambda row, number: {"answer": "" if number == 1 else row["answer"]}, with_indices=True).to_parquet(
        folder / "counting.parquet"
    )
    request = request_for(tasks=["counting"])
    scores = evaluated(request).tasks[0]
    assert (scores.num_asked, scores.num_dropped, scores.num_correct) == (5, 1, 3)
    assert scores.accuracy == pytest.approx(3 / 6)
    (dropped,) = EvaluationFolder(request.out).read_record().tasks["counting"].dropped
    assert dropped.startswith("row 1, field 'answer': empty")
    with pytest.raises(DataError, match="row 1, field 'answer': empty"):
        evaluated(request_for(tasks=["counting"], reading=AS_IT_IS))


def test_a_server_of_another_provider_answers_the_same_way(request_for: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def says_nine(name: str, **options: Any) -> Model:
        names.append(name)
        output = ModelOutput.from_content("model", r"\boxed{9}")
        output.usage = ModelUsage()
        return get_model("mockllm/model", custom_outputs=lambda *args: output.model_copy(deep=True))

    monkeypatch.setattr(subject, "get_model", says_nine)
    request = request_for(tasks=["counting"], engine="mockllm", checkpoint="model", template=None)
    scores = evaluated(request).tasks[0]
    references = [answer.question.answer for answer in EvaluationFolder(request.out).read_graded("counting")]
    assert (scores.num_correct, scores.num_no_box, scores.num_asked) == (references.count("9"), 0, 6)
    assert names == ["mockllm/model"]
    record = EvaluationFolder(request.out).read_record()
    assert (record.engine, record.template, record.checkpoint_digest) == ("mockllm", "think_boxed", "")
