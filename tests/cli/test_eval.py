"""`vgpo eval`: which run a checkpoint is of, and a result that can be written before it is computed."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.commands import evaluate as command
from vgpo.evaluation import Evaluation
from vgpo.run import trained

SCORES = Evaluation(1.0, 0.5, 1.0, num_questions=2, num_correct=2, num_unanswered=0, num_truncated=0, answers=[])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of its own template, with two checkpoints that hold nothing."""
    run = tmp_path / "run"
    for name in ("step-1", "final"):
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "config.yaml").write_text("template: think_boxed\n")
    return run


def evaluated(*words: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def test_a_checkpoint_is_of_its_run_whatever_path_leads_to_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = run / "checkpoints" / "step-1"
    monkeypatch.chdir(step)
    (run.parent / "latest").symlink_to(step)
    for path in (
        step,
        Path(),
        Path("../final"),
        run.parent / "latest",
        run / "checkpoints" / "final" / ".." / "step-1",
    ):
        assert trained.run_of_checkpoint(path) is not None, path
        assert trained.trained_settings(path)["template"] == "think_boxed"


def test_checkpoints_on_another_disk_are_of_the_run_that_links_to_them(run: Path) -> None:
    (run / "checkpoints").rename(run.parent / "elsewhere")
    (run / "checkpoints").symlink_to(run.parent / "elsewhere")
    assert trained.run_of_checkpoint(run / "checkpoints" / "final") == run


def test_what_lies_in_no_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    for path in ("/", "toy", "Qwen/Qwen2.5-VL-3B-Instruct", str(run), str(run / "checkpoints" / "none")):
        assert trained.trained_settings(Path(path)) == trained.DEFAULTS


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether an evaluation was made."""
    made: list[bool] = []
    monkeypatch.setattr(command, "evaluate_answers", lambda *args, **options: made.append(True) or SCORES)
    return made


def test_answers_are_written_and_replace_older_ones(
    toy_files: tuple[Path, Path], tmp_path: Path, scored: list[bool]
) -> None:
    out = tmp_path / "new" / "answers.json"
    for _ in range(2):
        assert evaluated("toy", "--data", toy_files[1], "--out", out).exit_code == 0
    assert json.loads(out.read_text())["accuracy"] == 1.0
    assert len(scored) == 2


def test_a_place_that_cannot_be_written_is_found_before_the_evaluation(
    toy_files: tuple[Path, Path], tmp_path: Path, scored: list[bool]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x.json", "Not a directory|File exists")):
        done = evaluated("toy", "--data", toy_files[1], "--out", out)
        assert done.exit_code == 2
        assert f"--out {out}: " in done.stderr
        assert any(part in done.stderr for part in reason.split("|"))
        assert "name a file" in done.stderr
    assert not scored


def test_an_evaluation_that_fails_leaves_no_file_and_no_older_one_lost(run: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("{}")
    for out in (old, new):
        assert evaluated(run / "checkpoints" / "final", "--data", "toy:test", "--out", out).exit_code == 2
    assert old.read_text() == "{}"
    assert not os.path.lexists(new)
