"""The way from a recipe to a report, and what stops it before a model is loaded."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.commands import quickstart, train
from vgpo.toy import write_datasets


def fail_to_load(*args: object, **kwargs: object) -> None:
    raise AssertionError("a model was loaded")


def invoke_train(monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What `vgpo train --config quickstart_vgpo WORDS` says when it ends before a model is loaded."""
    monkeypatch.setattr(train, "load_model", fail_to_load)
    done = CliRunner().invoke(app, ["train", "--config", "quickstart_vgpo", *map(str, words)])
    assert done.exit_code == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.output
    return done.stderr


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, missing = tmp_path / "run", tmp_path / "none.parquet"
    message = invoke_train(monkeypatch, "--run_dir", run_dir, "--train_data", missing)
    assert str(missing) in message
    assert not run_dir.exists()


def test_too_little_data(tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    sizes = ["--steps_per_generation", 8, "--train_data", toy_files[0], "--eval_data", toy_files[1]]
    message = invoke_train(monkeypatch, "--run_dir", run_dir, *sizes)
    assert "a generation takes 64 prompts and the training set has 48" in message
    assert not run_dir.exists()


def test_a_folder_that_holds_a_run_is_not_written_into(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    words = ["--run_dir", tmp_path, "--train_data", toy_files[0], "--eval_data", toy_files[1]]
    assert "already holds a run (metrics.jsonl)" in invoke_train(monkeypatch, *words)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_quickstart_from_command_to_report(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "write_datasets", partial(write_datasets, num_train=48, num_test=12))
    out = tmp_path / "out"
    words = ["quickstart", "--out", str(out), "--seed", "1", "--max-steps", "1", "--num-questions", "10"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)

    assert done.exit_code == 0
    last = done.stdout.strip().splitlines()[-4:]
    assert last[0].split() == ["run", "before", "after", "gain", "95", "%", "interval", "minutes"]
    assert [line.split()[0] for line in last[1:3]] == ["DAPO", "VGPO"]
    assert last[3] == f"report: {out / 'report.html'}"
    assert "<html" in (out / "report.html").read_text()

    runs = {name: out / name for name in ("dapo", "vgpo")}
    scores = {name: json.loads((run / "evaluation.json").read_text()) for name, run in runs.items()}
    assert scores["dapo"]["before"] == scores["vgpo"]["before"]
    for name, run in runs.items():
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert (settings["seed"], settings["max_steps"]) == (1, 1)
        assert settings["shaping"] == {"dapo": "none", "vgpo": "vgpo"}[name]
        assert scores[name]["after"]["num_questions"] == 10
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps if "reward" in line] == [1]
        assert (run / "rollouts.jsonl").stat().st_size > 0
        assert (run / "report.html").is_file()

    # The saved checkpoint answers as the trained policy did.
    final = str(runs["vgpo"] / "checkpoints" / "final")
    test_file, result = str(out / "data" / "test.parquet"), tmp_path / "eval" / "result.json"
    words = ["eval", final, "--data", test_file, "--limit", "10", "--max-new-tokens", "64", "--out", str(result)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "of 10, 95 % interval" in done.stdout
    assert json.loads(result.read_text())["answers"] == scores["vgpo"]["after"]["answers"]
