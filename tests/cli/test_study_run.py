"""One run of a study for real: trained, looked at, sealed, and resumed where it stopped."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.study.stand_in_run import SEALED
from vgpo.data import DataError
from vgpo.study import run as study_run
from vgpo.study.file import load_study, write_recipe
from vgpo.study.folder import StudyRun
from vgpo.study.results import Comparison, RunKey, study_data

STUDY = {
    "recipe": "quickstart_dapo",
    "base": "dapo",
    "seeds": [0],
    "common": {
        "max_steps": 2, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "dynamic_sampling": False,
        "save_strategy": "steps", "save_steps": 1, "per_device_eval_batch_size": 6,
    },
    "methods": {"dapo": {}},
}  # fmt: skip


@pytest.fixture
def run_one(tmp_path: Path, toy_files: tuple[Path, Path]) -> Callable[[str], StudyRun]:
    """Bring a run to its end: `start` or `dapo`."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    planned = {run.method: run for run in load_study(path).runs}

    def run(method: str) -> StudyRun:
        one = StudyRun(tmp_path / method)
        one.path.mkdir(exist_ok=True)
        write_recipe(one.recipe_path, planned[method].values)
        words = ["--train_data", str(toy_files[0]), "--eval_data", str(toy_files[1]), "--use_cpu", "true"]
        study_run.run(one.path, words, start=method == "start", jobs=1)
        return one

    return run


@pytest.mark.train
def test_a_run_is_trained_looked_at_and_sealed(
    run_one: Callable[[str], StudyRun], toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_run, "memory_of", lambda device: f"that of {device}")
    one = run_one("dapo")
    assert one.is_done
    assert one.final_path.is_dir()
    assert list(one.folder.checkpoints_path.glob("checkpoint-*")) == []
    found = json.loads(one.probe_path.read_text())
    evaluation = one.folder.read_evaluation()
    assert evaluation is not None
    assert list(evaluation) == ["after"]
    assert found["accuracy"]["true"]["accuracy"] == evaluation["after"]["accuracy"]
    assert found["accuracy"]["blank"]["num_questions"] == found["accuracy"]["other"]["num_questions"] == 12
    assert found["responses"]["all"]["num_responses"] == 12
    usage = json.loads(one.usage_path.read_text())
    assert usage["memory_of"] == "that of cpu"  # of the recipe (use_cpu: true), whatever the machine has
    assert usage["peak_memory_bytes"] > 50e6

    # Killed after the training, in a study that has a suite by now: nothing is trained again.
    write_recipe(one.suite_path, {"tasks": ["mine"], "data": {"mine": str(toy_files[1])}, "limit": 5})
    for name in ("done.json", "probe.json", "usage.json"):
        (one.path / name).unlink()
    monkeypatch.setattr(study_run, "train_recipe", lambda *args, **kwargs: pytest.fail("trained again"))
    again = run_one("dapo")
    assert again.is_done
    assert json.loads(again.probe_path.read_text()) == found
    assert json.loads(again.usage_path.read_text())["peak_memory_bytes"] is None
    record = again.evaluation.read_record()
    assert record.checkpoint == str(again.final_path)
    assert (record.template, record.tasks["mine"].num_asked) == ("plain", 5)
    assert again.evaluation.scores_path.is_file()
    assert again.changed_files() == []
    again.suite_path.write_text("{}")
    assert again.changed_files() == ["suite.yaml"]

    start = run_one("start")
    assert start.is_done
    assert {path.name for path in start.path.iterdir()} & set(SEALED) == {
        "recipe.yaml",
        "probe.json",
        "evaluation.json",
    }
    assert list(start.folder.read_evaluation() or {}) == ["before"]
    places = [RunKey("default", name, 0, run.path) for name, run in (("start", start), ("dapo", again))]
    comparison = Comparison(
        name="one", question=None, base="dapo", methods=["dapo"], seeds=[0], settings=["default"]
    )  # fmt: skip
    (setting,) = study_data(places, [comparison], name="one")["comparisons"][0]["settings"]
    assert setting["methods"][0]["memory"] is None
    assert setting["methods"][0]["steps_to_base"]["num_reached"] == 1
    assert [chart["id"] for chart in setting["charts"]] == ["accuracy", "length", "entropy", "late_early"]


@pytest.mark.train
def test_a_start_is_evaluated_on_the_suite_and_goes_on_there_after_a_failure(
    run_one: Callable[[str], StudyRun], tmp_path: Path, toy_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, rows = StudyRun(tmp_path / "start"), tmp_path / "rows.parquet"
    one.path.mkdir()
    suite = {"tasks": "mine", "data": {"mine": str(rows)}, "limit": 5}
    write_recipe(one.suite_path, suite)
    with pytest.raises(DataError, match=r"rows\.parquet"):
        run_one("start")
    assert one.has_begun
    assert not one.is_done
    shutil.copy(toy_files[1], rows)
    monkeypatch.setattr(study_run, "grounding_of", lambda *args, **kwargs: pytest.fail("probed again"))
    run_one("start")
    assert one.is_done
    record = one.evaluation.read_record()
    assert (record.checkpoint, record.template, record.max_new_tokens) == ("toy", "plain", 40)
    assert one.evaluation.read_scores()["tasks"][0]["num_asked"] == 5


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert (study_run.memory_of(gpu), study_run.peak_memory(gpu)) == ("the GPU cuda:1", 7)
    assert study_run.memory_of(cpu) == "process"
    assert study_run.peak_memory(cpu) > 50e6


ON_TWO_CPUS = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1, "num_processes": 2,
    "main_process_port": 0, "mixed_precision": "no",
}  # fmt: skip


@pytest.mark.slow
def test_a_run_in_several_processes_is_evaluated_by_one(tmp_path: Path, toy_files: tuple[Path, Path]) -> None:
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(ON_TWO_CPUS))
    command = f"{sys.executable} -m accelerate.commands.launch --config_file {tmp_path / 'accelerate.yaml'}"
    path = tmp_path / "study.yaml"
    sizes = {"num_processes": 2, "per_device_train_batch_size": 8, "use_cpu": True}
    path.write_text(yaml.safe_dump({**STUDY, "launch": command, "common": {**STUDY["common"], **sizes}}))
    planned = next(run for run in load_study(path).runs if not run.is_start)
    one = StudyRun(tmp_path / "dapo")
    one.path.mkdir()
    write_recipe(one.recipe_path, planned.values)
    words = ["--train_data", str(toy_files[0]), "--eval_data", str(toy_files[1])]
    for _ in range(2):  # the second finds the training over, and no seal
        study_run.run(one.path, words, start=False, jobs=1, launch=planned.launch)
        assert one.is_done
        (one.path / "done.json").unlink()
    assert "after" in (one.folder.read_evaluation() or {})
    assert one.folder.read_identity()["processes"] == 2
    assert json.loads(one.usage_path.read_text())["peak_memory_bytes"] is None


def test_a_launched_training_that_fails_ends_the_run(tmp_path: Path) -> None:
    one = StudyRun(tmp_path)
    write_recipe(one.recipe_path, {"train_data": "toy:train", "eval_data": "toy:test"})
    with pytest.raises(SystemExit) as ended:
        study_run.train_launched(one, ["--eval_data", "x", "--seed", "1"], ["bash", "-c", 'echo "$@" >&2; exit 3'])
    assert ended.value.code == 3
    assert yaml.safe_load((tmp_path / "launched.yaml").read_text()) == {"train_data": "toy:train"}


def test_a_signal_reaches_the_processes_of_a_launched_training(tmp_path: Path) -> None:
    one, started = StudyRun(tmp_path), tmp_path / "started"
    write_recipe(one.recipe_path, {"train_data": "toy:train"})
    waiting = f"trap 'exit 7' TERM; touch {started}; while :; do sleep 0.05; done"

    def send() -> None:
        while not started.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        study_run.train_launched(one, [], ["bash", "-c", waiting])
    thread.join()
    assert ended.value.code == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_there_is_a_process_ends_the_run() -> None:
    with pytest.raises(SystemExit) as ended, study_run.passing_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
