"""`vgpo compare`: study files, runs that are skipped, gone on with, fail and stop, and what is written of them."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.study import stand_in_run
from vgpo.commands import compare, study_jobs
from vgpo.commands.study_file import PlannedRun, StudyError, load_study
from vgpo.study.runs import StudyRun

RECIPE = """
model_name_or_path: toy
train_data: train.parquet
eval_data: test.parquet
use_cpu: true
bf16: false
gradient_checkpointing: false
seed: 7
"""
STUDY = """
recipe: {recipe}
base: dapo
seeds: [0, 1]
common: {{max_steps: 4}}
methods:
  dapo: {{shaping: none}}
  vgpo:
"""


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    def write(lines: str = "", **changes: object) -> Path:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE)
        values = yaml.safe_load(STUDY.format(recipe=recipe) + lines) | changes
        path = tmp_path / "study.yaml"
        kept = {key: value for key, value in values.items() if value != "absent"}
        path.write_text(yaml.safe_dump(kept, sort_keys=False))
        return path

    return write


def test_runs_are_methods_by_seeds_by_settings(write_study: Callable[..., Path]) -> None:
    settings = {"short": {}, "long": {"max_completion_length": 99}}
    study = load_study(write_study(settings=settings))
    assert [run.name for run in study.runs] == [
        "short/start", "short/dapo/seed-0", "short/vgpo/seed-0", "short/dapo/seed-1", "short/vgpo/seed-1",
        "long/start", "long/dapo/seed-0", "long/vgpo/seed-0", "long/dapo/seed-1", "long/vgpo/seed-1",
    ]  # fmt: skip
    last = study.runs[-1]
    assert last.values["seed"] == 1  # not the recipe's 7
    assert last.values["max_completion_length"] == 99
    assert last.values["evaluate_before"] is False
    assert last.max_steps == 4
    assert "shaping" not in last.values
    assert study.runs[1].values["shaping"] == "none"


def test_runs_of_several_comparisons_are_made_once(write_study: Callable[..., Path]) -> None:
    methods = {"dapo": {"shaping": "none"}, "vgpo": {}, "strong": {"strength": 1.0}}
    settings = {"short": {}, "long": {"max_completion_length": 99}}
    comparisons = {
        "rivals": {"base": "dapo", "methods": ["dapo", "vgpo"], "question": "Does it help?"},
        "sweep": {"base": "vgpo", "methods": ["vgpo", "strong"], "seeds": [1, 2], "settings": ["short"]},
    }
    study = load_study(write_study(methods=methods, settings=settings, comparisons=comparisons, base="absent"))
    assert [run.name for run in study.runs] == [
        "short/start", "short/dapo/seed-0", "short/vgpo/seed-0", "short/dapo/seed-1", "short/vgpo/seed-1",
        "long/start", "long/dapo/seed-0", "long/vgpo/seed-0", "long/dapo/seed-1", "long/vgpo/seed-1",
        "short/strong/seed-1", "short/vgpo/seed-2", "short/strong/seed-2",
    ]  # fmt: skip
    rivals, sweep = study.comparisons
    assert (rivals.question, rivals.base, rivals.seeds, rivals.settings) == (
        "Does it help?", "dapo", [0, 1], ["short", "long"]
    )  # fmt: skip
    assert (sweep.question, sweep.base, sweep.methods, sweep.seeds) == (None, "vgpo", ["vgpo", "strong"], [1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"comparisons": ["rivals"]}, "comparisons is a list"),
        ({"comparisons": {"a/b": {}}}, "comparisons: the name 'a/b' becomes a folder"),
        ({"comparisons": {"a": None}}, "comparisons: a is a NoneType"),
        ({"comparisons": {"a": {"bases": "dapo"}}}, "a: unknown key 'bases' .did you mean 'base'"),
        ({"comparisons": {"a": {"methods": ["dapo"]}}}, "a: base is missing"),
        ({"comparisons": {"a": {"base": "vgpo", "methods": ["dapo"]}}}, "a: base: nothing is called 'vgpo'"),
        (
            {"comparisons": {"a": {"base": "dapo", "methods": ["dapo", "vgp"]}}},
            "methods: nothing is called 'vgp' .did",
        ),
        ({"comparisons": {"a": {"base": "dapo", "methods": ["dapo", "dapo"]}}}, "methods names one twice"),
        ({"comparisons": {"a": {"base": "dapo", "methods": "dapo"}}}, "methods is 'dapo', expected a list"),
        (
            {"comparisons": {"a": {"base": "dapo", "settings": ["x"]}}},
            "settings: nothing is called 'x'; there are def",
        ),
        ({"comparisons": {"a": {"base": "dapo", "seeds": []}}}, r"a: seeds is \[\], expected a list"),
        ({"comparisons": {"a": {"base": "dapo", "question": 3}}}, "a: question is 3, expected a sentence"),
        ({"comparisons": {"a": {"base": "dapo", "methods": ["dapo"]}}}, "methods: vgpo in no comparison"),
    ],
)
def test_what_breaks_a_comparison_is_refused(write_study: Callable[..., Path], changes: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(base="absent", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "absent"}, "seeds is missing or empty"),
        ({"seeds": 5}, r"seeds is 5, expected a list of whole numbers such as \[0, 1"),
        ({"seeds": [1, True]}, "expected a list of whole numbers"),
        ({"seeds": [3, 3]}, "seeds names one twice"),
        ({"seed": [0]}, "unknown key 'seed' .did you mean 'seeds'"),
        ({"base": "dap"}, "base: nothing is called 'dap' .did you mean 'dapo'"),
        ({"base": "absent"}, "base is missing: name the method that the others are compared with"),
        ({"comparisons": {"a": {"base": "dapo"}}}, "base: each comparison has its own; remove this one"),
        ({"methods": ["dapo"]}, "methods is a list"),
        ({"methods": {"dapo": ["none"]}}, "methods: dapo is a list"),
        ({"methods": {"dapo": {"shapping": "none"}}}, "methods: dapo: unknown field 'shapping' .did you"),
        ({"methods": {"dapo": {"output_dir": "x"}}}, "methods: dapo: output_dir cannot be set"),
        ({"methods": {"dapo": {}, "a/b": {"intra": False}}}, "the name 'a/b' becomes a folder"),
        ({"methods": {"dapo": {}, "..": {"intra": False}}}, "the name '..' becomes a folder"),
        ({"methods": {"dapo": {}, "DAPO": {"intra": False}}}, "differ in case alone"),
        ({"methods": {"dapo": {}, "start": {"intra": False}}}, "'start' stands for the model before training"),
        ({"methods": {"dapo": {"seed": 3}}}, "methods: dapo: seed cannot be set: list the seeds"),
        ({"common": {"resume": True}}, "common: resume cannot be set"),
        ({"common": {"run_dir": "x"}}, "common: run_dir cannot be set: each run has a folder"),
        ({"methods": {"dapo": {}, "x": {"train_data": "y"}}}, "methods: x: train_data would make runs that cannot be"),
        ({"methods": {"dapo": {}, "x": {"max_steps": 9}}}, "methods: x: max_steps would make runs that cannot be"),
        ({"methods": {"dapo": {}, "x": {"model_name_or_path": "y"}}}, "methods: x: model_name_or_path would make"),
        ({"methods": {"dapo": {}, "x": {"eval_limit": 3}}}, "methods: x: eval_limit would make runs that"),
        ({"methods": {"dapo": {}, "vgpo": {}}}, "methods: dapo and vgpo are the same"),
        ({"methods": {f"m{i}": {"strength": i / 10} for i in range(9)}, "base": "m0"}, "expected at most 8"),
        ({"settings": {"a": {"intra": False}}, "methods": {"dapo": {"intra": True}}}, "intra is also set in settings"),
        ({"common": {"eval_data": None}}, "method dapo: eval_data is missing"),
        ({"methods": {"dapo": {"strength": -1.0}}}, "setting default, method dapo: .*strength"),
        ({"common": {"dynamic_sampling": True, "rewards": ["format", "accuracy"]}}, "filters by 'format', and what"),
        ({"methods": {"dapo": {}, "x": {"rewards": ["accuracy"]}}}, "methods: x: rewards would make runs that cannot"),
        ({"methods": {"dapo": {}, "x": {"use_cpu": True}}}, "methods: dapo and x are the same"),
        ({"recipe": "quickstart_dapoo"}, "did you mean 'quickstart_dapo'"),
    ],
)  # fmt: skip
def test_what_breaks_a_study_is_refused(write_study: Callable[..., Path], changes: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(**changes))


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.yaml: no such study file"):
        load_study(tmp_path / "none.yaml")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a moment."""

    def command(planned: PlannedRun, one: StudyRun, jobs: int) -> list[str]:
        return [sys.executable, stand_in_run.__file__, str(one.path), planned.method, str(planned.seed)]

    monkeypatch.setattr(study_jobs, "command_of", command)
    monkeypatch.setattr(study_jobs, "POLL_SECONDS", 0.01)


def times_started(out: Path, name: str) -> int:
    path = out / "runs" / name / "started"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_study_is_run_once(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, study = tmp_path / "out", write_study()
    assert compare.run(study, out=out, jobs=2)
    shown = capsys.readouterr().out
    assert "5 runs, 0 of them done" in shown
    assert "default/vgpo/seed-1: done in" in shown
    # 0.60 and 0.61 against 0.50 and 0.51: 10 points for both seeds, so that p is 2 / 2^2. The base ends at 0.505 on
    # average; 0.6 x 8/10 and 0.6 x 9/10 average 0.51 at step 9, and so does seed 1 with 0.5185.
    row = next(line for line in (out / "table.md").read_text().splitlines() if line.startswith("| vgpo"))
    held_out, cost = "60.5 [60.0, 61.0] | +10.0 [+10.0, +10.0] | 0.5", "1.10 [1.10, 1.10] | 1.00 [1.00, 1.00]"
    assert row == f"| vgpo | 2 | {held_out} | +7.7 [+7.7, +7.8] | 0.5 | 9 (2 of 2) | {cost} |"
    assert times_started(out, "default/vgpo/seed-0") == 1

    assert compare.run(study, out=out, jobs=1)
    assert "5 runs, 5 of them done" in capsys.readouterr().out
    assert times_started(out, "default/vgpo/seed-0") == 1

    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"]) for row in rows[1:]] == [
        ("dapo", "0"), ("vgpo", "0"), ("dapo", "1"), ("vgpo", "1")
    ]  # fmt: skip
    assert [float(row["accuracy"]) for row in json.loads((out / "runs.json").read_text())] == pytest.approx(
        [0.3, 0.5, 0.6, 0.51, 0.61]
    )


@pytest.mark.parametrize(
    ("gpus", "jobs", "expected"), [([], 2, {"None"}), (["4", "7"], 2, {"4", "7"}), (["4", "7"], 1, {"4"})]
)
def test_each_run_has_one_gpu(
    write_study: Callable[..., Path],
    stand_in: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[str],
    jobs: int,
    expected: set[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(study_jobs, "visible_gpus", lambda: gpus)
    out = tmp_path / "out"
    assert compare.run(write_study(), out=out, jobs=jobs)
    started = [path.read_text().removeprefix("on ").strip() for path in (out / "runs").rglob("started")]
    assert set(started) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 21}\n', r"vgpo/seed-1: metrics\.jsonl changed after the run was done; put back"),
        ("done.json", "{", r"done\.json"),
    ],
)
def test_a_run_that_was_changed_when_it_was_done_is_not_taken(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, name: str, text: str, message: str
) -> None:
    out, study = tmp_path / "out", write_study()
    compare.run(study, out=out, jobs=2)
    run = out / "runs/default/vgpo/seed-1"
    (run / name).write_text(text)
    with pytest.raises(compare.ERRORS, match=message):
        compare.run(study, out=out, jobs=2)
    shutil.rmtree(run)
    assert compare.run(study, out=out, jobs=2)
    assert times_started(out, "default/dapo/seed-0") == 1


def test_another_start_under_the_same_name_is_not_taken(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path
) -> None:
    out, start, data = tmp_path / "out", tmp_path / "weights", tmp_path / "train.parquet"
    start.mkdir()
    (start / "model.safetensors").write_text("weights")
    data.write_text("rows")
    study = write_study(common={"max_steps": 4, "model_name_or_path": str(start), "train_data": str(data)})
    compare.run(study, out=out, jobs=2)
    assert compare.run(study, out=out, jobs=2)
    (start / "model.safetensors").write_text("others!")
    with pytest.raises(StudyError, match="setting default: model_name_or_path has other contents than when the runs"):
        compare.run(study, out=out, jobs=2)
    (start / "model.safetensors").write_text("weights")
    data.write_text("more rows")
    with pytest.raises(StudyError, match="setting default: train_data has other contents"):
        compare.run(study, out=out, jobs=2)


def test_a_failed_run_is_told_and_tried_again(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, study = tmp_path / "out", write_study()
    (out / "dapo fails").mkdir(parents=True)
    assert not compare.run(study, out=out, jobs=1)
    shown = capsys.readouterr().out
    assert "default/dapo/seed-1 failed with exit status 1" in shown
    assert "line before\n  [U+001B][31mout of luck" in shown
    assert "default/vgpo/seed-1: done" in shown
    assert "Not done: dapo (seed 0, 1)" in shown
    (out / "dapo fails").rmdir()
    assert compare.run(study, out=out, jobs=1)
    assert times_started(out, "default/vgpo/seed-0") == 1


def test_a_changed_study_does_not_take_old_runs(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compare.run(write_study(), out=out, jobs=2)
    with pytest.raises(StudyError, match=r"a run with other settings \(max_steps\)"):
        compare.run(write_study(common={"max_steps": 5}), out=out, jobs=2)
    # Seeds may be added, also before the others.
    assert compare.run(write_study(seeds=[2, 0, 1]), out=out, jobs=2)
    assert times_started(out, "default/dapo/seed-0") == times_started(out, "default/dapo/seed-2") == 1


def test_two_cannot_share_a_folder(write_study: Callable[..., Path], stand_in: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        compare.locked(out),
        pytest.raises(StudyError, match=rf"in use by another vgpo compare \(process {os.getpid()}"),
    ):
        compare.run(write_study(), out=out, jobs=1)
    assert compare.run(write_study(), out=out, jobs=2)


def test_a_run_that_was_left_behind_keeps_the_folder_locked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with compare.locked(out) as lock:
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(StudyError, match="or by a run that it left behind"), compare.locked(out):
        pass
    left.communicate(b"\n")
    with compare.locked(out) as lock:
        fcntl.flock(lock, fcntl.LOCK_UN)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_runs_save(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, number: int, status: int
) -> None:
    out = tmp_path / "out"
    (out / "vgpo waits").mkdir(parents=True)
    run = out / "runs/default/vgpo/seed-0"

    def tell() -> None:
        while not (run / "training").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    # A test runner in the background of a shell is started deaf to SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        with pytest.raises(SystemExit) as stop:
            compare.run(write_study(), out=out, jobs=1)
    finally:
        signal.signal(signal.SIGINT, before)
    teller.join()
    assert stop.value.code == status
    assert (run / "saved").exists()
    assert times_started(out, "default/dapo/seed-1") == 0
    assert (out / "table.md").exists()  # of what is done
