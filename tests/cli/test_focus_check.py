"""`vgpo focus-check`, from a checkpoint and a dataset to a file, a page and a table."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.focus_check import check
from vgpo.focus_check.records import FocusCheck
from vgpo.toy import write_datasets


def checked(*words: object) -> Result:
    return CliRunner().invoke(app, ["focus-check", *map(str, words)], env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("toy"), num_train=1, num_test=4, progress=False)[1]


def test_a_check_of_the_embedded_model(questions: Path, tmp_path: Path) -> None:
    done = checked(
        "toy", questions, "--limit", 3, "--samples", 2, "--blind-samples", 1, "--stratum-column", "id",
        "--max-new-tokens", 24, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = FocusCheck.model_validate_json((tmp_path / "out" / "focus_check.json").read_text())
    assert (found.measures.counts.questions, found.measures.counts.responses) == (3, 6)
    assert len(found.measures.strata["reading"]) == 3
    assert found.verdict.gain == "too few"
    assert found.settings.max_new_tokens == 24
    assert "too few groups" in (tmp_path / "out" / "focus_check.html").read_text()
    assert f"toy on {questions}: Undecided, too few groups have mixed accuracy." in done.output
    assert "correlation of focus" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "QUESTIONS"), "nowhere"),
        (("toy", "no.parquet"), "no.parquet"),
        (("toy", "QUESTIONS", "--temperature", "0"), "--temperature 0.0: expected a number above 0"),
        (("toy", "QUESTIONS", "--stratum-column", "levl"), "stratum_column='levl' is not a column of the dataset"),
        (("toy", "QUESTIONS", "--dtype", "float31"), "float31"),
    ],
)
def test_bad_input_is_told(questions: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = checked(*(str(questions) if word == "QUESTIONS" else word for word in words), "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not list(tmp_path.glob("focus_check.*"))


def test_an_output_that_cannot_be_written_is_told_first(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delattr(check, "focus_check")
    done = checked("toy", questions, "--out", tmp_path / "file" / "page.html")
    assert done.exit_code == 2
    assert "name a file in a folder that can be written to" in done.stderr
