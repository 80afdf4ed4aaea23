"""`vgpo train --resume true`: the same command goes on, as the run that was never stopped, or says what differs."""

import json
import py_compile
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.fault_lab import differences
from safetensors.torch import save

from tests.cli.resuming import REWARD, STEPS, Start, contents, evaluation, wait_for
from vgpo.checkpoints import CheckpointStore
from vgpo.checkpoints.store import FORMAT, file_entry
from vgpo.recipe import identity, train
from vgpo.recipe.signals import StopOnSignal
from vgpo.run import RunFolder

WAITING = """
import time
from pathlib import Path

def waiting(**kwargs):
    Path(__file__).with_name("waits").touch()
    time.sleep(300)
"""


@pytest.mark.train
@pytest.mark.parametrize("step", [1, 2, STEPS], ids=["in a window", "between windows", "after the last step"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    start: Start, whole: Path, stopped: Callable[[int], Path], step: int
) -> None:
    run = stopped(step)
    done = start(run)
    assert done.exit_code == 0, done.output
    assert f"resuming from {run / 'checkpoints' / f'checkpoint-{step}'}, step {step}" in done.stdout
    assert differences(run, whole) == []
    assert evaluation(run) == evaluation(whole)
    [resumed] = RunFolder.open(run).read_resumes()
    assert (resumed.step, resumed.changes) == (step, [])


def write_newer_format(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))


def become_one_of_version_0_1(checkpoint: Path) -> None:
    """Training state in two files, which the manifest lists."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["step_state_0.pt"]
    (checkpoint / "step_state_0.pt").unlink()
    for name, content in (("step_state_0.json", b'{"dict": []}'), ("step_state_0.safetensors", save({}))):
        (checkpoint / name).write_bytes(content)
        manifest["files"][name] = file_entry(checkpoint / name)
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))


def become_a_link(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(f"moved-{checkpoint.name}"))
    checkpoint.symlink_to(f"moved-{checkpoint.name}")


UNUSABLE = {
    "of a newer version": (write_newer_format, "manifest.json has format 3, expected 2"),
    "of version 0.1": (
        become_one_of_version_0_1,
        "was saved by vgpo 0.1, whose training state this version does not read: finish the run with vgpo 0.1, or "
        "begin a new run from its weights by naming it as model_name_or_path",
    ),
    "with a foreign file": (lambda folder: (folder / "notes.txt").touch(), "files unexpected: notes.txt"),
    "links": (become_a_link, "a link or a file, expected a folder"),
}


@pytest.mark.train
@pytest.mark.parametrize(("spoil", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_resume_without_a_usable_checkpoint_is_an_error_that_changes_nothing(
    start: Start, stopped: Callable[[int], Path], spoil: Callable[[Path], object], reason: str
) -> None:
    run = stopped(2)
    for step in (1, 2):
        spoil(run / "checkpoints" / f"checkpoint-{step}")
    before = contents(run)
    done = start(run, "--save_total_limit", "2", "--allow_changes", "true")
    assert done.exit_code == 2
    assert f"{run / 'checkpoints'} contains 2 checkpoint(s), and none is usable:" in done.stderr
    assert f"\n  checkpoint-2: {reason}" in done.stderr
    assert f"\n  checkpoint-1: {reason}" in done.stderr
    assert "choose a new run_dir; this one stays unchanged" in done.stderr
    assert contents(run) == before


@pytest.mark.train
def test_checkpoints_of_a_newer_version_survive_a_resume_from_an_older_one(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(3)
    for step in (2, 3):
        write_newer_format(run / "checkpoints" / f"checkpoint-{step}")
    before = contents(run / "checkpoints")
    done = start(run, "--save_total_limit", "2")
    assert done.exit_code == 0, done.output
    assert differences(run, whole) == []
    after = contents(run / "checkpoints")
    for step in (2, 3):
        files = {name: digest for name, digest in before.items() if name.startswith(f"checkpoint-{step}/")}
        assert (
            files.items()
            <= {name.removeprefix("unusable-"): after[name] for name in after if "unusable" in name}.items()
        )


@pytest.mark.train
def test_a_resume_whose_checkpoint_cannot_be_loaded_changes_nothing(
    start: Start, stopped: Callable[[int], Path]
) -> None:
    run = stopped(2)
    before = contents(run)
    done = start(run, "--num_iterations", "2", "--allow_changes", "true")
    assert done.exit_code == 2
    assert "checkpoint-2 holds the rows and rollouts that come next" in done.stderr
    assert contents(run) == before


@pytest.mark.train
def test_a_resume_of_a_finished_run_is_an_error_that_changes_nothing(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    before = contents(whole)
    for words in ([], ["--allow_changes", "true", "--num_train_epochs", "9"]):
        done = start(whole, *words)
        assert done.exit_code == 2
        assert f"{whole} is finished: {STEPS} steps" in done.stderr
        assert f"the recipe asks for max_steps={STEPS}. Nothing was changed." in done.stderr
        assert "raise max_steps or num_train_epochs and set allow_changes: true" in done.stderr
        assert contents(whole) == before
    done = start(whole, "--max_steps", "-1", "--num_train_epochs", "0.5", "--allow_changes", "true")
    assert "the recipe asks for num_train_epochs=0.5" in done.stderr

    run = shutil.copytree(whole, tmp_path / "run")
    done = start(run, "--max_steps", str(STEPS + 1), "--allow_changes", "true")
    assert done.exit_code == 0, done.output
    assert RunFolder(run).read_finished().step == STEPS + 1
    assert start(run, "--max_steps", str(STEPS + 1), "--allow_changes", "true").exit_code == 2


@pytest.mark.train
def test_a_run_that_was_killed_before_its_report_is_not_finished(start: Start, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("report.html", "finished.json"):
        (run / name).unlink()
    done = start(run)
    assert done.exit_code == 0, done.output
    assert differences(run, whole) == []
    assert evaluation(run) == evaluation(whole)
    assert (run / "report.html").is_file()
    assert RunFolder(run).read_finished().step == STEPS


@pytest.mark.train
def test_a_run_that_was_killed_before_its_first_save_starts_again_and_keeps_its_first_evaluation(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(0)
    marked = {"before": {**evaluation(whole)["before"], "num_correct": -1}}
    (run / "evaluation.json").write_text(json.dumps(marked))
    done = start(run)
    assert done.exit_code == 0, done.output
    assert "no checkpoint was saved yet: the run starts from step 0" in done.stdout
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
    assert "skipped: checkpoint-3: model.safetensors has" in done.stdout
    assert f"resuming from {run / 'checkpoints' / 'checkpoint-2'}, step 2" in done.stdout
    assert differences(run, whole) == []


CHANGES = {
    "data set": (["--train_data", "{folder}/test.parquet"], ["data set"]),
    "template": (["--template", "think_boxed"], ["template"]),
    "reward": (["--rewards", "accuracy"], ["rewards"]),
    "pixel limits": (["--max_pixels", "20000"], ["image_processor.size.longest_edge", "max_pixels"]),
    "settings": (["--learning_rate", "1e-5", "--seed", "7"], ["learning_rate", "seed"]),
    "how it is watched": (["--save_steps", "2", "--logging_steps", "5"], []),
    "how it is judged": (["--eval_limit", "1"], ["held-out set"]),
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


@pytest.mark.parametrize("suffix", ["py", "pyc"])
def test_a_reward_counts_by_the_bytes_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    name = f"reward_in_latin_{suffix}"
    source = tmp_path / f"{name}.py"
    source.write_bytes("# -*- coding: latin-1 -*-  é\ndef f(**kwargs): ...\n".encode("latin-1"))
    if suffix == "pyc":
        py_compile.compile(str(source), tmp_path / f"{name}.pyc")
        source.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    found = identity.source_digest(f"{name}:f")
    assert found is not None
    if suffix == "py":
        assert found == identity.source_digest(f"{source}:f")
        source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
        assert found == identity.source_digest(f"{source}:f")


@pytest.mark.train
def test_a_change_that_is_meant_is_recorded(start: Start, whole: Path, stopped: Callable[[int], Path]) -> None:
    run = stopped(2)
    done = start(run, "--learning_rate", "0.001", "--allow_changes", "true")
    assert done.exit_code == 0, done.output
    change = "learning_rate was 0.0001, is 0.001"
    assert f"changed: {change}" in done.stdout
    [resumed] = RunFolder.open(run).read_resumes()
    assert resumed.changes == [change]
    rates = [[line.get("learning_rate") for line in RunFolder.open(path).read_metrics()] for path in (whole, run)]
    assert rates[1] == [*rates[0][:2], *(pytest.approx(10 * rate) for rate in rates[0][2:STEPS]), None]


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
    assert "SIGTERM: finishing and saving the current step" in said
    assert f"to resume from {newest.path}, run the same command with --resume true" in said
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
