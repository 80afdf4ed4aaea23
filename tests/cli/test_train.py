"""The way from a recipe to a report, and what stops it before a model is loaded."""

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import Result
from safetensors import SafetensorError
from typer.testing import CliRunner

from vgpo.checkpoints import CheckpointStore
from vgpo.cli import app
from vgpo.commands import quickstart
from vgpo.evaluation import Evaluation
from vgpo.recipe import setup, train
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.train import how_to_resume
from vgpo.rewards.containment import StoppedBySignal
from vgpo.run import RunFolder, RunFolderError
from vgpo.toy import write_datasets
from vgpo.trl import NonFiniteError


def fail_to_load(*args: object, **kwargs: object) -> None:
    raise AssertionError("a model was loaded")


def invoke_train(monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What `vgpo train --config quickstart_vgpo WORDS` says when it ends before a model is loaded."""
    monkeypatch.setattr(setup, "load_model", fail_to_load)
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


def test_a_start_warns_of_evaluation_images_in_the_training_set(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(setup, "load_model", fail_to_load)
    # A generation that is too large ends the start before a model is loaded.
    words = ["train", "--config", "quickstart_vgpo", "--steps_per_generation", "8", "--run_dir", str(tmp_path / "run")]
    words += ["--train_data", str(toy_files[0])]
    warned, silent = (
        CliRunner().invoke(app, [*words, "--eval_data", str(source), "--eval_limit", "3"]).stdout
        for source in toy_files
    )
    assert "eval_data: 3 of 3 questions have an image of the training set: question '0' in training row '0'" in warned
    assert "evaluation images" not in silent


def test_a_folder_that_holds_a_run_is_not_written_into(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    words = ["--run_dir", tmp_path, "--train_data", toy_files[0], "--eval_data", toy_files[1]]
    assert "already contains a run (metrics.jsonl)" in invoke_train(monkeypatch, *words)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def test_quickstart_refuses_a_taken_folder_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / "vgpo").mkdir()
    (tmp_path / "vgpo" / "config.yaml").write_text("")
    done = CliRunner().invoke(app, ["quickstart", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "vgpo already contains a run (config.yaml)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["vgpo"]


def test_a_taken_folder_is_refused_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    message = invoke_train(monkeypatch, "--run_dir", tmp_path, "--train_data", tmp_path / "none.parquet")
    assert "already contains a run" in message


def test_a_start_that_fails_leaves_the_folder_free(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"

    def fail_late(*args: object, **kwargs: object) -> None:
        (run_dir / "checkpoints").mkdir(parents=True)  # as the trainer does
        raise RecipeError("no such model")

    for check in ("check_image_token", "raise_failed_checks"):
        monkeypatch.setattr(train, check, lambda *args: None)
    monkeypatch.setattr(train, "VGPOTrainer", fail_late)
    monkeypatch.setattr(setup, "load_model", lambda *args, **kwargs: torch.nn.Module())
    monkeypatch.setattr(train, "model_identity", lambda model: {})
    words = ["--run_dir", run_dir, "--train_data", toy_files[0], "--eval_data", toy_files[1]]
    done = CliRunner().invoke(app, ["train", "--config", "quickstart_vgpo", *map(str, words)])
    assert "no such model" in done.stderr
    RunFolder(run_dir).require_free()


SCORES = Evaluation(0.5, 0.2, 0.8, num_questions=10, num_correct=5, num_unanswered=0, num_truncated=0, answers=[])


@dataclass
class StandIn:
    """A trainer that takes two steps, then meets `ending`; `save` is what saving its model does."""

    folder: RunFolder
    ending: BaseException | None = None
    failing_save: Exception | None = None
    is_fsdp_enabled = is_deepspeed_enabled = False

    def check_parity(self) -> None:
        """It has no model."""

    def __post_init__(self) -> None:
        self.args = SimpleNamespace(should_save=True)
        self.state = SimpleNamespace(global_step=0, epoch=0.1)
        self.checkpoints = CheckpointStore(self.folder.checkpoints_path, keep=None)

    def train(self, resume_from_checkpoint: None) -> None:
        assert "before" in self.folder.read_evaluation()
        for step in (1, 2):
            self.state.global_step = step
            self.folder.log_metrics({"step": step, "epoch": 0.1, "time": 0.0, "reward": 0.5})
        if self.ending is not None:
            raise self.ending

    def save_model(self, path: str) -> None:
        assert "after" not in self.folder.read_evaluation()
        if self.failing_save is not None:
            raise self.failing_save


@pytest.fixture
def invoke_stand_in(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Result, RunFolder]]:
    """`vgpo train` on a `StandIn`, and the run folder that it leaves."""

    def invoke(**ends: Exception | None) -> tuple[Result, RunFolder]:
        folder = RunFolder(tmp_path / "run")
        monkeypatch.setattr(train, "build_trainer", lambda *args, **kwargs: StandIn(folder, **ends))
        monkeypatch.setattr(train, "evaluate_policy", lambda *args: SCORES)
        words = ["--run_dir", folder.path, "--train_data", toy_files[0], "--eval_data", toy_files[1]]
        return CliRunner().invoke(app, ["train", "--config", "quickstart_vgpo", *map(str, words)]), folder

    return invoke


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (StoppedBySignal(143), 143, "SIGTERM"),
        (NonFiniteError("loss is nan\nand more"), 2, "NonFiniteError: loss is nan"),
        (OSError("other"), 1, "OSError: other"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_ends_early_has_its_report(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]], ending: BaseException, status: int, reason: str
) -> None:
    done, folder = invoke_stand_in(ending=ending)
    assert {**folder.read_interrupted().model_dump(), "time": 0} == {"step": 2, "time": 0, "reason": reason}
    assert done.exit_code == status
    assert f"stopped at step 2; metrics, rollouts and report are in {folder.path}" in done.stdout
    assert "Traceback" not in done.output
    assert "<html" in folder.report_path.read_text()
    assert folder.read_config()["accuracy_reward"] == "accuracy_reward"
    assert set(folder.read_evaluation()) == {"before"}


def test_a_report_that_fails_does_not_hide_why_the_run_ended(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: object) -> None:
        raise RunFolderError("no report")

    monkeypatch.setattr(train, "write_report", fail)
    done, _ = invoke_stand_in(ending=NonFiniteError("loss is nan"))
    assert "error: loss is nan" in done.stderr
    assert "could not be written" in caplog.text


INJECTED = {
    "mark": (RunFolder, "write_interrupted"),
    "report": (train, "write_report"),
    "checkpoints": (CheckpointStore, "newest_valid"),
    "output": (train, "say"),
}


@pytest.mark.parametrize(
    "second", [OSError(errno.EMFILE, "Too many open files"), KeyboardInterrupt(), SystemExit(130)]
)
@pytest.mark.parametrize(("place", "name"), INJECTED.values(), ids=INJECTED)
def test_nothing_that_fails_while_an_error_is_reported_hides_it(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]],
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    second: BaseException,
) -> None:
    real, calls = getattr(place, name), []

    def fail(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if name == "say" and "stopped at" not in str(args[1]):
            return real(*args, **kwargs)
        raise second

    monkeypatch.setattr(place, name, fail)
    done, _ = invoke_stand_in(ending=NonFiniteError("loss is nan"))
    assert calls
    assert done.exit_code == 2
    assert "error: loss is nan" in done.stderr


def test_an_error_without_a_text_ends_a_run_as_itself(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]],
) -> None:
    class UnreadableError(NonFiniteError):
        def __str__(self) -> str:
            raise KeyError

    done, _ = invoke_stand_in(ending=UnreadableError())
    assert done.exit_code == 2
    assert "UnreadableError" in done.stderr


@pytest.mark.parametrize("code", [0, None, 7])
def test_an_exit_that_no_signal_asked_for_is_an_error(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]], code: int | None
) -> None:
    done, folder = invoke_stand_in(ending=SystemExit(code))
    assert done.exit_code == 1
    assert str(done.exception).startswith(f"sys.exit({code}) was called in a run that is not finished")
    assert folder.read_interrupted() is not None


def test_a_report_that_cannot_be_written_does_not_cost_the_run(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "write_report", fail)
    monkeypatch.setattr(train, "save_final", lambda *args: None)
    done, folder = invoke_stand_in()
    assert done.exit_code == 0, done.output
    assert folder.finished_path.is_file()
    assert f"`vgpo report {folder.path}` to create it" in caplog.text


def test_a_finished_run_names_its_weights_and_its_report(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "save_final", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    done, folder = invoke_stand_in()
    assert folder.path == tmp_path / "run"
    assert done.stdout.splitlines()[-2:] == ["weights: run/checkpoints/final", "report: run/report.html"]


def test_parity_that_cannot_be_written_does_not_cost_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "file")
    folder.path.touch()
    parity = SimpleNamespace(table=lambda: "", as_dict=dict)
    trainer = SimpleNamespace(parity=parity, args=SimpleNamespace(should_save=True))
    train.KeepParity(trainer, folder, train.Console(quiet=True)).on_train_begin()
    assert "The results of the parity check could not be written" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter: No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_says_what_is_left(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]], error: Exception
) -> None:
    done, folder = invoke_stand_in(failing_save=error)
    assert done.exit_code == 2
    assert f"{folder.checkpoints_path / 'final'} could not be written: " in done.stderr
    assert "No space left on device" in done.stderr
    assert "run the same command with --resume true" in done.stderr
    assert set(folder.read_evaluation()) == {"before"}


def test_weights_that_are_not_finite_are_no_full_disk(
    invoke_stand_in: Callable[..., tuple[Result, RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder = invoke_stand_in(failing_save=NonFiniteError("weights hold a NaN"))
    assert done.exit_code == 2
    assert "error: weights hold a NaN" in done.stderr
    assert "resume from" not in done.output
    assert not folder.final_path.exists()


def test_how_to_resume_is_the_command_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["vgpo", "train", "quickstart_dapo", "--run_dir", "a b/dapo"]
    monkeypatch.setattr(sys, "argv", ["vgpo", "quickstart"])
    assert how_to_resume(command) == "run vgpo train quickstart_dapo --run_dir 'a b/dapo' --resume true"
    monkeypatch.setattr(sys, "argv", command)
    assert how_to_resume(command) == "run the same command with --resume true"


@pytest.mark.train
@pytest.mark.smoke
def test_quickstart_from_command_to_report(
    tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "write_datasets", partial(write_datasets, num_train=48, num_test=12))
    out = tmp_path / "out"
    words = ["quickstart", "--out", str(out), "--seed", "1", "--max-steps", "1", "--num-questions", "10"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)

    assert done.exit_code == 0
    last = done.stdout.strip().splitlines()[-6:]
    assert last[0].split() == ["run", "before", "after", "gain", "95", "%", "interval", "minutes"]
    assert [line.split()[0] for line in last[1:3]] == ["DAPO", "VGPO"]
    weights = [f"weights of {name}: {out / name.lower() / 'checkpoints' / 'final'}" for name in ("DAPO", "VGPO")]
    assert last[3:] == [*weights, f"report: {out / 'report.html'}"]
    # No frame of a bar where none can be redrawn, and where the run is, on what, with how much data.
    assert "\r" not in done.stdout + done.stderr
    assert f"run folder: {out / 'vgpo'}\ndevice: cpu\ndata: 48 prompts for training (" in done.stdout
    assert "10 held-out questions (" in done.stdout
    assert done.stdout.count("step 1 of 1: reward 0.") == 2
    assert "MiB" in done.stdout
    assert "GiB" not in done.stdout
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
    words = ["eval", final, "--data", test_file, "--limit", "10", "--out", str(result)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "of 10, 95 % interval" in done.stdout
    written = json.loads(result.read_text())
    assert written["answers"] == scores["vgpo"]["after"]["answers"]
    assert (written["template"], written["max_new_tokens"]) == ("plain", 40)  # of the run
