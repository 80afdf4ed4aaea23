"""A run that was never stopped, folders as a kill leaves them, and `vgpo train --resume true` on them."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from vgpo.cli import app
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
        (run / "finished.json").unlink()
        (run / "newest_checkpoint.json").unlink()
        if step:
            (run / "newest_checkpoint.json").write_text(json.dumps({"step": step}))
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 4, "epo')
        return run

    return copy


def evaluation(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


def contents(folder: Path) -> dict[str, str]:
    """Every file and link below a folder, with the SHA-256 of what it holds or where it leads."""

    def digest(path: Path) -> str:
        return f"-> {path.readlink()}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()

    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(path.relative_to(folder)): digest(path) for path in files}


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
