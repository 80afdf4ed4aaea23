"""The benchmark of graded suites counts against known verdicts, and times as many answers as it says."""

import json
from pathlib import Path

import pytest
from benchmarks import suite_grading

KNOWN = [
    ("B", "B", True, ["red", "blue"]),
    ("B", "blue", True, ["red", "blue"]),
    ("7", "7 cm", True, None),
    ("7", "8", False, None),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    keys = ("gold", "answer", "right", "options")
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in KNOWN), encoding="utf-8")
    return path


def test_it_ends_in_its_figures(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["suite_grading.py", str(file), "--answers", "50"])
    with pytest.raises(SystemExit) as ended:
        suite_grading.main()
    assert ended.value.code == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["answers"] == 50
    assert set(line["seconds"]) == {"papo", "lenient"}
    assert line["verdicts"] == {
        "papo": {"TT": 2, "TF": 1, "FT": 0, "FF": 1},
        "lenient": {"TT": 3, "TF": 0, "FT": 0, "FF": 1},
        "accuracy": {"TT": 2, "TF": 1, "FT": 0, "FF": 1},
    }


def test_answers_are_drawn_from_the_seed_and_half_of_them_are_a_questions_own(file: Path) -> None:
    known = suite_grading.read_known(file)
    questions, answers = suite_grading.draw_answers(known, 400, 3)
    assert suite_grading.draw_answers(known, 400, 3) == (questions, answers)
    assert [question.row for question in questions] == [answer.row for answer in answers] == list(range(400))
    own = sum(answer.completion.endswith(rf"\boxed{{{known[answer.row % 4].answer}}}") for answer in answers)
    assert 220 < own < 280  # 1/2, and a quarter of the others


def test_an_answer_without_a_verdict_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"gold": "7", "answer": "7"}')
    with pytest.raises(SystemExit, match=r"answers.jsonl, line 1: expected an object with gold, answer and right"):
        suite_grading.read_known(tmp_path / "answers.jsonl")
