"""What is printed can get lost; then only a command that is run for what it prints fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vgpo.toy import write_datasets

pytestmark = pytest.mark.process

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a bash command."""
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def of(words: str) -> str:
    return f"{sys.executable} -m vgpo.cli {words}"


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_below_the_output_fails_a_command_that_prints(unbuffered: str) -> None:
    done = shell(f"{of('--version')} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "error: the output could not be written: [Errno 28] No space left on device\n"


def test_a_pipe_that_nobody_reads_fails_a_command_that_prints_quietly() -> None:
    done = shell(f'{{ sleep 1; {of("--version")}; }} | true; exit "${{PIPESTATUS[0]}}"')
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_output_fails_a_command_that_prints() -> None:
    done = shell(f"{of('--version')} >&-")
    assert done.returncode == 1
    assert done.stderr == "error: the output could not be written: [Errno 9] Bad file descriptor\n"


@FULL
def test_both_outputs_on_a_full_disk_keep_the_status_of_an_error(tmp_path: Path) -> None:
    done = shell(of(f"report {tmp_path}/none") + " > /dev/full 2>&1")
    assert done.returncode == 2


PRINTS = """
import logging, sys, warnings
from rich.console import Console
from tqdm import tqdm
from vgpo.terminal import keep_printing

output = keep_printing()
for _ in range(3):
    print("a line", "x" * 100_000)
    print("an error", file=sys.stderr, flush=True)
    Console().print("rich")
    Console(stderr=True).print("rich")
    logging.warning("a log")
    warnings.warn("a warning")
    list(tqdm(range(3)))
    sys.stdout.close()
    sys.stderr.close()
opened = open(sys.argv[1], "w")
assert opened.fileno() > 2
sys.exit(7 if output.failure else 6)
"""


@pytest.mark.parametrize(
    ("outputs", "status"),
    [
        (">&- 2>&-", 7),
        ("<&- >&- 2>&-", 7),
        pytest.param("> /dev/full 2>&1", 7, marks=FULL),
        ("> /dev/null 2>&1", 6),
    ],
)
def test_whoever_prints_to_an_output_that_is_lost_goes_on(outputs: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    done = shell(f"{sys.executable} {tmp_path}/prints.py {tmp_path}/opened {outputs}")
    assert done.returncode == status
    assert (tmp_path / "opened").read_text() == ""


def test_whoever_prints_to_a_terminal_that_is_gone_goes_on(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    master, slave = os.openpty()
    os.close(master)  # every write gives EIO
    words = [sys.executable, str(tmp_path / "prints.py"), str(tmp_path / "opened")]
    done = subprocess.run(words, stdin=slave, stdout=slave, stderr=slave, check=False)
    os.close(slave)
    assert done.returncode == 7


def test_the_streams_stay_as_they_were() -> None:
    script = (
        "import sys\n"
        "def facts(s): return (s.encoding, s.errors, s.line_buffering, s.write_through,\n"
        "                      s.fileno(), s.isatty(), s.name)\n"
        "before = facts(sys.stdout), facts(sys.stderr)\n"
        "from vgpo.terminal import keep_printing\n"
        "keep_printing()\n"
        "sys.stdout.reconfigure(errors=before[0][1])\n"
        "assert before == (facts(sys.stdout), facts(sys.stderr))\n"
        "print('kept')\n"
    )
    for options in ([], ["-u"]):
        done = subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("kept\n", "")


def training(folder: Path, **settings: object) -> str:
    """The words of `vgpo train` for one step in `folder`/run."""
    train, test = write_datasets(folder, num_train=12, num_test=4, progress=False)
    recipe = {
        "model_name_or_path": "toy", "train_data": str(train), "eval_data": str(test), "rewards": ["accuracy"],
        "run_dir": str(folder / "run"), "num_generations": 4, "per_device_train_batch_size": 8,
        "steps_per_generation": 1, "max_completion_length": 8, "max_steps": 1, "learning_rate": 1.0e-4,
        "dtype": "float32", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "report_to": "none",
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | settings))
    return f"train --config {folder}/recipe.yaml"


@pytest.mark.parametrize("outputs", [pytest.param("> /dev/full 2>&1", marks=FULL), ">&- 2>&-"])
def test_a_training_whose_output_is_lost_ends_as_any_other(outputs: str, tmp_path: Path) -> None:
    done = shell(f"{of(training(tmp_path))} {outputs}")
    assert done.returncode == 0
    assert (tmp_path / "run" / "finished.json").is_file()


def test_a_reward_that_ends_the_process_does_not_end_a_training_as_if_it_were_done(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os\n\ndef ends(**kwargs):\n    os._exit(0)\n")
    done = shell(of(training(tmp_path, rewards=[f"{tmp_path}/own.py:ends"])))
    assert done.returncode == 2
    assert "error: reward 'ends' raised SystemExit for row 0 of the batch" in done.stderr
    assert not (tmp_path / "run" / "finished.json").exists()
