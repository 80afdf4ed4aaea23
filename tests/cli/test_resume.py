"""`vgpo train --resume true`: the same command goes on, as the run that was never stopped, or says what differs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from benchmarks.faults import differences
from click.testing import Result
from typer.testing import CliRunner

from vgpo.checkpoints import CheckpointStore
from vgpo.cli import app
from vgpo.commands import train
from vgpo.commands.signals import StopOnSignal
from vgpo.report import RunFolder
from vgpo.toy import write_datasets

STEPS = 4
SETTINGS = {
    "model_name_or_path": "toy",
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 2,
    "dynamic_sampling": True,
    "max_completion_length": 16,
    "max_steps": STEPS,
    "learning_rate": 1.0e-4,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "log_rollouts_steps": 1,
    "dtype": "float32",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": "none",
}
REWARD = """
def odd(completions, **kwargs):
    return [float(sum(map(ord, completion[0]["content"])) % 2) for completion in completions]
"""
WAITING = """
import time
from pathlib import Path

def waiting(**kwargs):
    Path(__file__).with_name("waits").touch()
    time.sleep(300)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its data, and a reward of one's own."""
    folder = tmp_path_factory.mktemp("resume")
    _, test = write_datasets(folder, num_train=12, num_test=4, progress=False)
    (folder / "reward.py").write_text(REWARD)
    recipe = {
        "train_data": str(folder / "train.parquet"),
        "eval_data": str(test),
        "rewards": [f"{folder}/reward.py:odd"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**SETTINGS, **recipe}))
    return folder


Start = Callable[..., Result]


@pytest.fixture(scope="module")
def start(folder: Path) -> Start:
    """`vgpo train --resume true` in a run folder."""

    def invoke(run: Path, *words: str) -> Result:
        return CliRunner().invoke(app, command(folder, run, *words), catch_exceptions=False)

    return invoke


def command(folder: Path, run: Path, *words: str) -> list[str]:
    return ["train", "--config", str(folder / "recipe.yaml"), "--run_dir", str(run), "--resume", "true", *words]


@pytest.fixture(scope="module")
def whole(folder: Path, start: Start) -> Path:
    """The run that was never stopped, with a checkpoint of each step; `--resume` in an empty folder begins it."""
    done = start(folder / "whole")
    assert done.exit_code == 0, done.output
    return folder / "whole"


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A folder as a kill leaves it that came after more was written than the checkpoint of a step."""

    def copy(step: int) -> Path:
        run = shutil.copytree(whole, tmp_path / "run")
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(run / "checkpoints" / f"checkpoint-{later}")
        shutil.rmtree(run / "checkpoints" / "final")
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 4, "epo')
        return run

    return copy


def evaluation(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.train
@pytest.mark.parametrize("step", [1, 2, STEPS], ids=["in a window", "between windows", "after the last step"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    start: Start, whole: Path, stopped: Callable[[int], Path], step: int
) -> None:
    run = stopped(step)
    done = start(run)
    assert done.exit_code == 0, done.output
    assert f"going on from {run / 'checkpoints' / f'checkpoint-{step}'}, step {step}" in done.stdout
    assert differences(run, whole) == []
    assert evaluation(run) == evaluation(whole)
    [resumed] = RunFolder.open(run).read_resumes()
    assert (resumed["step"], resumed["changes"]) == (step, [])


@pytest.mark.train
def test_a_run_without_a_usable_checkpoint_begins_anew_and_keeps_its_first_evaluation(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(1)
    (run / "checkpoints" / "checkpoint-1" / "manifest.json").unlink()
    marked = {"before": {**evaluation(whole)["before"], "num_correct": -1}}
    (run / "evaluation.json").write_text(json.dumps(marked))
    done = start(run)
    assert done.exit_code == 0, done.output
    assert "passed over: checkpoint-1: manifest.json is missing" in done.stdout
    assert f"{run} has no usable checkpoint: the run begins anew" in done.stdout
    assert differences(run, whole) == []
    assert evaluation(run) == {**marked, "after": evaluation(whole)["after"]}


@pytest.mark.train
def test_a_checkpoint_that_is_not_whole_is_named_and_passed_over(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(3)
    weights = run / "checkpoints" / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = start(run)
    assert done.exit_code == 0, done.output
    assert "passed over: checkpoint-3: model.safetensors has" in done.stdout
    assert f"going on from {run / 'checkpoints' / 'checkpoint-2'}, step 2" in done.stdout
    assert differences(run, whole) == []


CHANGES = {
    "data set": (["--train_data", "{folder}/test.parquet"], ["data set"]),
    "template": (["--template", "think_boxed"], ["template"]),
    "reward": (["--rewards", "accuracy"], ["rewards"]),
    "pixel limits": (["--max_pixels", "20000"], ["max_pixels", "picture sizes"]),
    "settings": (["--learning_rate", "1e-5", "--seed", "7"], ["learning_rate", "seed"]),
    "how it is watched": (["--save_steps", "2", "--logging_steps", "5", "--eval_limit", "1"], []),
    "what is kept of it": (["--max_rollout_bytes", "1000000", "--save_total_limit", "9"], []),
}


@pytest.mark.train
@pytest.mark.parametrize(("words", "names"), CHANGES.values(), ids=CHANGES)
def test_another_run_is_an_error_that_lists_what_differs(
    start: Start,
    folder: Path,
    stopped: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    names: list[str],
) -> None:
    def no_training(*args: object, **kwargs: object) -> None:
        raise train.RecipeError("same run")

    monkeypatch.setattr(train, "build_trainer", no_training)
    run = stopped(2)
    before = (run / "metrics.jsonl").read_bytes()
    done = start(run, *(word.format(folder=folder) for word in words))
    assert done.exit_code == 2
    listed = [line.split(" was ")[0].strip() for line in done.stderr.splitlines() if " was " in line]
    assert sorted(listed) == names
    assert ("set allow_changes: true" in done.stderr) == bool(names)
    assert ("same run" in done.stderr) == (not names)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.train
def test_a_reward_that_was_edited_is_another_one(start: Start, folder: Path, stopped: Callable[[int], Path]) -> None:
    run = stopped(2)
    (folder / "reward.py").write_text(REWARD + "# mended\n")
    done = start(run)
    (folder / "reward.py").write_text(REWARD)
    assert done.exit_code == 2
    assert "rewards was " in done.stderr


@pytest.mark.train
def test_a_change_that_is_meant_is_recorded(start: Start, whole: Path, stopped: Callable[[int], Path]) -> None:
    run = stopped(2)
    done = start(run, "--learning_rate", "0.001", "--allow_changes", "true")
    assert done.exit_code == 0, done.output
    change = "learning_rate was 0.0001, is 0.001"
    assert f"changed: {change}" in done.stdout
    [resumed] = RunFolder.open(run).read_resumes()
    assert resumed["changes"] == [change]
    rates = [[line.get("learning_rate") for line in RunFolder.open(path).read_metrics()] for path in (whole, run)]
    assert rates[1] == [*rates[0][:2], *(pytest.approx(10 * rate) for rate in rates[0][2:STEPS]), None]


@pytest.fixture
def begin(folder: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """The command in a process of its own, which ends with the test; what it says goes to `log`."""
    with contextlib.ExitStack() as ends:

        def start_process(*words: str) -> "subprocess.Popen[bytes]":
            line = [sys.executable, "-m", "vgpo.cli", *command(folder, tmp_path / "run", *words)]
            log = ends.enter_context((tmp_path / "log").open("wb"))
            process = subprocess.Popen(line, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        yield start_process


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.train
def test_a_signal_behind_the_last_step_does_not_cost_the_trained_model(
    start: Start, whole: Path, stopped: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # While the last checkpoint is written, that is.
    monkeypatch.setattr(StopOnSignal, "on_save", lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    run = stopped(STEPS - 1)
    done = start(run)
    assert done.exit_code == 128 + signal.SIGTERM
    assert [line["step"] for line in RunFolder.open(run).read_metrics()][-1] == STEPS
    names = [path.name for path in (whole / "checkpoints" / "final").iterdir()]
    assert sorted(names) == sorted(path.name for path in (run / "checkpoints" / "final").iterdir())


@pytest.mark.process
def test_a_preempted_run_saves_the_step_at_hand_and_goes_on(
    start: Start, begin: Callable[..., "subprocess.Popen[bytes]"], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = begin("--save_steps", "100")
    wait_for(run / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, (tmp_path / "log").read_text()
    newest = CheckpointStore(run / "checkpoints", keep=None).newest_valid()
    assert newest.step == RunFolder.open(run).read_metrics()[-1]["step"] < STEPS
    said = (tmp_path / "log").read_text()
    assert "SIGTERM: the step at hand is finished and saved" in said
    assert f"the same command with --resume true goes on from {newest.path}" in said
    assert start(run).exit_code == 0
    assert differences(run, whole) == []


@pytest.mark.process
def test_a_second_interrupt_leaves_at_once(
    begin: Callable[..., "subprocess.Popen[bytes]"], folder: Path, tmp_path: Path
) -> None:
    (folder / "waiting").mkdir()
    (folder / "waiting" / "reward.py").write_text(WAITING)
    reward = ["--rewards", f"{folder}/waiting/reward.py:waiting", "--evaluate_before", "false"]
    process = begin(*reward)
    wait_for(folder / "waiting" / "waits", process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, (tmp_path / "log").read_text()
    assert not CheckpointStore(tmp_path / "run" / "checkpoints", keep=None).steps()
