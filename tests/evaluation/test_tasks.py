"""Benchmarks in the process of the model: which rows are asked, with which prompt, and that they are graded."""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from PIL import Image

from vgpo.data import DataError, load_dataset, to_prompts
from vgpo.evaluation import evaluate
from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.protocols import protocol_named
from vgpo.evaluation.tasks import drawn_rows, evaluate_task, load_task
from vgpo.recipe.loading import PlainCheckpoint, load_model, load_processor
from vgpo.toy import write_datasets

BENCHMARK = BENCHMARKS["geomath"]  # whose data are the user's own


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, answers: Sequence[str]) -> str:
    """Rows with these answers; one with an empty answer cannot be used."""
    file = io.BytesIO()
    Image.effect_noise((30, 20), 50).convert("RGB").save(file, "PNG")
    image = {"bytes": file.getvalue(), "path": None}
    rows = [
        {"images": [image], "problem": f"Question {n}?", "answer": answer, "id": f"q{n}"}
        for n, answer in enumerate(answers)
    ]
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def test_a_sample_is_the_same_whenever_it_is_drawn() -> None:
    rows = range(1000)
    sample = drawn_rows(rows, 20)
    assert len(sample) == 20
    assert sample == drawn_rows([*reversed(rows)], 20)  # in whatever order they come
    assert sample != set(range(20))
    assert drawn_rows([3, 5], 2) == drawn_rows([3, 5], None) == drawn_rows([3, 5], 9) == {3, 5}


def test_rows_that_cannot_be_asked_are_drawn_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.parquet", ["1", "", "3", "", "5", "6", "", "8"])
    whole = load_task(BENCHMARK, source, template="plain")
    assert ([question.id for question in whole.questions], whole.num_dropped) == (["q0", "q2", "q4", "q5", "q7"], 3)
    sample = drawn_rows(range(8), 4)
    task = load_task(BENCHMARK, source, template="plain", limit=4)
    assert {question.row for question in task.questions} == sample - {1, 3, 6}
    assert task.num_dropped == len(sample & {1, 3, 6})
    assert task.num_rows == 8
    assert task.prompts["problem"] == [question.problem for question in task.questions]


def test_a_sample_without_a_row_to_ask_is_refused(tmp_path: Path) -> None:
    (drawn,) = drawn_rows(range(8), 1)
    answers = ["" if row == drawn else "1" for row in range(8)]
    with pytest.raises(DataError, match="none of the 1 sampled rows of GeoMath can be asked; raise the limit"):
        load_task(BENCHMARK, write(tmp_path / "rows.parquet", answers), template="plain", limit=1)


def text_of(task) -> str:
    return task.prompts[0]["prompt"][0]["content"][-1]["text"]


def test_rows_of_papo_eval_get_no_template(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.parquet", ["1"])
    assert "<think>" in text_of(load_task(BENCHMARK, source, template="think_boxed"))
    row = load_dataset(source).with_format("arrow")[:1]["images"].to_pylist()[0]
    turns = [{"role": "user", "content": "<image>How many? Use \\boxed{}."}, {"role": "assistant", "content": "1"}]
    Dataset.from_list([{"messages": turns, "images": row}]).to_parquet(str(tmp_path / "papo.parquet"))
    papo = load_task(BENCHMARKS["counting"], str(tmp_path / "papo.parquet"), template="think_boxed")
    assert text_of(papo) == "How many? Use \\boxed{}."


def test_a_task_has_the_accuracy_of_a_plain_evaluation(tmp_path: Path) -> None:
    _, test = write_datasets(tmp_path / "toy", num_train=1, num_test=24, progress=False)
    model = load_model(PlainCheckpoint("toy"), trust_remote_code=False)
    processor = load_processor(PlainCheckpoint("toy"), trust_remote_code=False, min_pixels=None, max_pixels=None)
    options = {"batch_size": 10, "max_new_tokens": 40, "progress": False}
    expected = evaluate(model, processor, to_prompts(load_dataset(str(test))), **options)
    task = load_task(BENCHMARK, str(test), template="plain")
    scores, graded = evaluate_task(model, processor, task, protocol_named("papo-greedy"), **options)
    assert [answer.completion for answer in graded] == [answer["completion"] for answer in expected.answers]
    assert 0 < scores.accuracy < 1
    assert scores.accuracy == expected.accuracy
    assert (scores.num_asked, scores.num_no_box) == (24, expected.num_unanswered)
