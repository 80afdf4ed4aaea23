"""`vgpo compare`: study files, runs that are skipped, resumed, fail and stop, and what is written of them."""

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest
import yaml

from tests.study import stand_in_run
from vgpo.commands import compare
from vgpo.recipe.parsing import field_names
from vgpo.recipe.recipe import RECIPE_PARTS, recipe_from
from vgpo.study import checks as study_checks
from vgpo.study import file as study_file
from vgpo.study import jobs as study_jobs
from vgpo.study.file import CONTROLLED_FIELDS, PlannedRun, StudyError, load_study
from vgpo.study.folder import StudyRun
from vgpo.toy import checkpoint_path, write_datasets

RECIPE = """
model_name_or_path: toy
train_data: {train}
eval_data: {test}
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


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_datasets(tmp_path_factory.mktemp("rows"), num_train=8, num_test=4, progress=False)


@pytest.fixture
def write_study(tmp_path: Path, few_rows: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(lines: str = "", **changes: object) -> Path:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(train=few_rows[0], test=few_rows[1]))
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


def test_a_setting_may_have_a_recipe_and_a_launch_of_its_own(write_study: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("extends: quickstart_vgpo\nmax_completion_length: 99\nseed: 5")
    settings = {"short": {}, "long": {"recipe": str(other), "launch": "mpirun -n '2'", "max_prompt_length": 9}}
    runs = load_study(write_study(settings=settings)).runs
    lengths = {
        (run.setting, run.values.get("max_prompt_length")): run.values.get("max_completion_length") for run in runs
    }
    assert lengths["long", 9] == 99
    assert lengths["short", None] != 99
    assert {(run.setting, run.launch) for run in runs} == {("short", ()), ("long", ("mpirun", "-n", "2"))}
    assert {run.seed for run in runs if run.setting == "long"} == {run.seed for run in runs if run.setting == "short"}


def test_a_run_that_is_launched_has_all_gpus_and_its_command(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert study_jobs.environment_of(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"
    assert study_jobs.environment_of(1, 2, all_devices=True)["CUDA_VISIBLE_DEVICES"] == "4,5"
    path = write_study("launch: mpirun -n 2")
    trained = next(run for run in load_study(path).runs if not run.is_start)
    assert study_jobs.command_of(trained, StudyRun(tmp_path), 1)[-2:] == ["--launch", "mpirun -n 2"]
    with pytest.raises(StudyError, match="--jobs 2, expected 1: a run that is launched takes all GPUs"):
        compare.run(path, out=tmp_path / "out", jobs=2)


def test_a_recipe_is_read_once_for_all_its_runs(
    write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        study_file, "recipe_from", lambda values, **options: read.append(values) or recipe_from(values, **options)
    )
    comparisons = {name: {"base": "dapo"} for name in ("one", "two")}
    load_study(
        write_study(settings={"a": {}, "b": {"max_completion_length": 9}}, comparisons=comparisons, base="absent")
    )
    assert len(read) == 2 * 3  # of each setting the start, dapo and vgpo


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
        (
            {"comparisons": {"a": {"base": "dapo", "methods": [{"dapo": None}, "vgpo"]}}},
            "called {'dapo': None}; there",
        ),
        ({"comparisons": {"a": {"base": "dapo", "methods": [["dapo", "vgpo"]]}}}, r"called \['dapo', 'vgpo'\]; there"),
        ({"comparisons": {"a": {"base": ["dapo"]}}}, r"a: base: nothing is called \['dapo'\]"),
        ({"comparisons": {"a": {"base": "dapo", "settings": [{"default": {}}]}}}, "settings: nothing is called {'def"),
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
        ({"seeds": [0, 2**33]}, r"seeds is \[0, 8589934592\], expected .* below 2\^32"),
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
        ({"methods": {"dapo": {}, "DAPO": {"intra": False}}}, "differ only in case"),
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
        ({"settings": {"a": {"recipe": 3}}}, "settings: a: recipe is 3, expected a name"),
        ({"settings": {"a": {"recipe": "quickstart_dap"}}}, "did you mean 'quickstart_dapo'"),
        ({"launch": 3}, "launch is 3, expected a command such as 'accelerate launch"),
        ({"launch": "a 'b"}, 'launch is "a \'b", expected a command'),
        ({"common": {"eval_data": None}}, "method dapo: eval_data is missing"),
        ({"methods": {"dapo": {"strength": -1.0}}}, "setting default, method dapo: .*strength"),
        ({"common": {"dynamic_sampling": True, "rewards": ["format"]}}, "filters by 'format_reward', the first"),
        ({"methods": {"dapo": {}, "x": {"rewards": ["accuracy"]}}}, "methods: x: rewards would make runs that cannot"),
        ({"methods": {"dapo": {}, "x": {"use_cpu": True}}}, "methods: dapo and x are the same"),
        ({"recipe": "quickstart_dapoo"}, "did you mean 'quickstart_dapo'"),
    ],
)  # fmt: skip
def test_what_breaks_a_study_is_refused(write_study: Callable[..., Path], changes: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(**changes))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("vgpo", "suite is 'vgpo', expected 'name: value' lines with tasks, data, protocol, limit, batch_size"),
        ({"task": "vgpo"}, "suite: unknown key 'task' .did you mean 'tasks'"),
        ({"tasks": []}, r"suite: tasks is \[\], expected the name of a suite, or a list of tasks"),
        ({"tasks": [3]}, r"suite: tasks is \[3\], expected the name"),
        ({"tasks": None}, "suite: tasks is None, expected the name"),
        ({"tasks": "vgpo-maths"}, "suite: tasks: there is no task 'vgpo-maths'"),
        ({"tasks": ["mathvist"]}, "suite: tasks: there is no task 'mathvist' .did you mean 'mathvista'"),
        ({"tasks": ["mine"]}, "suite: tasks: there is no task 'mine'"),
        ({"data": 3}, "suite: data is 3, expected a folder, or a source for each task"),
        ({"data": {"mmk12": 3}}, "suite: data is {'mmk12': 3}, expected a folder, or a source for each task"),
        ({"tasks": ["mmk12"], "data": {"mmk1": "x"}}, "suite: data: 'mmk1' is not one of the tasks .did you mean"),
        ({"protocol": "papo-gredy"}, "suite: protocol: there is no protocol 'papo-gredy' .did you mean 'papo-greedy'"),
        ({"protocol": 1}, "suite: protocol is 1, expected a name"),
        ({"limit": 0}, "suite: limit is 0, expected a whole number from 1"),
        ({"limit": True}, "suite: limit is True, expected a whole number"),
        ({"batch_size": None}, "suite: batch_size is None, expected a whole number from 1"),
    ],
)  # fmt: skip
def test_a_suite_that_cannot_be_evaluated_is_refused_with_file_and_key(
    write_study: Callable[..., Path], suite: object, message: str
) -> None:
    with pytest.raises(StudyError, match=rf"study\.yaml: {message}"):
        load_study(write_study(suite=suite))


def test_a_suite_may_be_left_out_be_empty_or_have_tasks_of_its_own(write_study: Callable[..., Path]) -> None:
    assert load_study(write_study()).suite is None
    suite = load_study(write_study(suite={})).suite
    assert suite is not None
    assert [len(suite.benchmarks), suite.protocol, suite.limit, suite.batch_size] == [10, "papo-greedy", None, 64]
    suite = load_study(write_study(suite={"tasks": ["vgpo-vision", "mine"], "data": {"mine": "rows.parquet"}})).suite
    assert suite is not None
    names = [benchmark.name for benchmark in suite.benchmarks]
    assert names == ["logicvista", "counting", "mmmu_pro", "mathverse_v", "mine"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation_kwargs", {"do_sample": False}), ("top_p", 0.9), ("top_k", 5), ("min_p", 0.1),
        ("repetition_penalty", 1.1), ("reward_weights", [2.0]), ("per_device_eval_batch_size", 3),
    ],
)  # fmt: skip
def test_all_methods_sample_score_and_evaluate_alike(
    write_study: Callable[..., Path], name: str, value: object
) -> None:
    with pytest.raises(StudyError, match=f"methods: x: {name} would make runs that cannot be compared"):
        load_study(write_study(methods={"dapo": {}, "x": {name: value}}))
    assert load_study(write_study(common={name: value}, methods={"dapo": {}, "x": {"shaping": "none"}}))


@pytest.mark.parametrize(
    "common",
    [{"rewards": ["format", "accuracy"]}, {"rewards": ["format"], "filter_reward": "format_reward"}],
    ids=["the reward named so", "filter_reward"],
)
def test_dynamic_sampling_by_the_accuracy_reward_can_be_compared(
    write_study: Callable[..., Path], common: dict
) -> None:
    assert load_study(write_study(common={"dynamic_sampling": True, **common}))


def test_what_methods_share_are_fields_of_a_recipe() -> None:
    assert [
        name for name in CONTROLLED_FIELDS if not any(field.startswith(name) for field in field_names(RECIPE_PARTS))
    ] == []


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


@pytest.mark.process
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
    held_out, cost = "60.5 [60.0, 61.0] | +10.0 [+10.0, +10.0] | 0.5", "1.10 [1.10, 1.10] | – | – | 1.00 [1.00, 1.00]"
    assert row == f"| vgpo | 2 | {held_out} | +7.7 [+7.7, +7.8] | 0.5 | 9 (2 of 2) | {cost} | 1.20 [1.20, 1.20] |"
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


@pytest.mark.process
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


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 21}\n', r"vgpo/seed-1: metrics\.jsonl changed after the run was done\n"),
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


@pytest.mark.process
def test_another_start_under_the_same_name_is_not_taken(
    write_study: Callable[..., Path], stand_in: None, few_rows: tuple[Path, Path], tmp_path: Path
) -> None:
    out, start, data = tmp_path / "out", tmp_path / "weights", tmp_path / "train.parquet"
    study = write_study(common={"max_steps": 4, "model_name_or_path": str(start), "train_data": str(data)})
    shutil.copy(few_rows[0], data)
    with pytest.raises(
        StudyError, match=r"setting default: processor: model_name_or_path: there is no folder '.*weights'"
    ):
        compare.run(study, out=out, jobs=2)
    shutil.copytree(checkpoint_path(), start)  # what was not there cannot have changed
    assert compare.run(study, out=out, jobs=2)
    weights = (start / "model.safetensors").read_bytes()
    (start / "model.safetensors").write_text("others!")
    with pytest.raises(StudyError, match=r"other contents than when the runs in .*\n  setting default: model_name_"):
        compare.run(study, out=out, jobs=2)
    (start / "model.safetensors").write_bytes(weights)
    data.unlink()
    assert compare.run(study, out=out, jobs=2)  # draws what is done
    data.write_text("more rows")
    with pytest.raises(StudyError, match="setting default: train_data"):
        compare.run(study, out=out, jobs=2)


def test_a_setting_without_a_run_may_get_other_data(write_study: Callable[..., Path], tmp_path: Path) -> None:
    easy, hard = tmp_path / "easy.parquet", tmp_path / "hard.parquet"
    settings = {"easy": {"train_data": str(easy)}, "hard": {"train_data": str(hard)}}
    study, out = load_study(write_study(settings=settings)), tmp_path / "out"
    easy.write_text("rows")
    hard.write_text("rows")
    study_checks.check_inputs_unchanged(study, out)
    stand_in_run.write_run(out / "runs/easy/dapo/seed-0", "dapo", 0)  # stopped here
    hard.write_text("harder rows")
    study_checks.check_inputs_unchanged(study, out)
    easy.write_text("other rows")
    with pytest.raises(StudyError, match="began:\n  setting easy: train_data\nRestore it"):
        study_checks.check_inputs_unchanged(study, out)
    # From now on the harder rows are those of the setting, be its run only half done.
    easy.write_text("rows")
    config = out / "runs/hard/vgpo/seed-1/config.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    study_checks.check_inputs_unchanged(study, out)
    hard.write_text("rows")
    with pytest.raises(StudyError, match="setting hard: train_data"):
        study_checks.check_inputs_unchanged(study, out)


def test_what_cannot_be_seen_from_elsewhere_stays_known(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = load_study(write_study(common={"train_data": "rows.parquet"})), tmp_path / "out"
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "rows.parquet").write_text("rows")
    monkeypatch.chdir(here)
    study_checks.check_inputs_unchanged(study, out)
    stand_in_run.write_run(out / "runs/default/dapo/seed-0", "dapo", 0)
    monkeypatch.chdir(elsewhere)
    study_checks.check_inputs_unchanged(study, out)
    monkeypatch.chdir(here)
    (here / "rows.parquet").write_text("other rows")
    with pytest.raises(StudyError, match="setting default: train_data"):
        study_checks.check_inputs_unchanged(study, out)
    (here / "rows.parquet").write_text("rows")
    study_checks.check_inputs_unchanged(study, out)


REWARD = "def always(completions, **kwargs):\n    return [1.0] * len(completions)\n"


@pytest.mark.parametrize(
    ("field", "source", "file", "named"),
    [
        ("train_data", "{}/rows.parquet@train", "rows.parquet", "train_data"),
        ("eval_data", "{}/sets@test", "sets/test.parquet", "eval_data"),
        ("template", "{}/my.jinja", "my.jinja", "template"),
        ("rewards", "{}/mine.py:always", "mine.py", "reward {}/mine.py:always"),
    ],
)
def test_what_all_runs_share_is_known_by_its_contents(
    write_study: Callable[..., Path], tmp_path: Path, field: str, source: str, file: str, named: str
) -> None:
    path, out = tmp_path / file, tmp_path / "out"
    path.parent.mkdir(exist_ok=True)
    path.write_text(REWARD)
    value = source.format(tmp_path)
    study = load_study(write_study(common={field: [value] if field == "rewards" else value}))
    study_checks.check_inputs_unchanged(study, out)
    stand_in_run.write_run(out / "runs/default/dapo/seed-0", "dapo", 0)
    study_checks.check_inputs_unchanged(study, out)
    path.write_text(f"{REWARD}\n")
    with pytest.raises(StudyError, match=f"setting default: {re.escape(named.format(tmp_path))}\n"):
        study_checks.check_inputs_unchanged(study, out)


def test_a_launched_run_with_benchmarks_is_not_started(
    write_study: Callable[..., Path], stand_in: None, few_rows: tuple[Path, Path], tmp_path: Path
) -> None:
    suite = {"eval_suite": ["geomath"], "eval_suite_data": {"geomath": str(few_rows[1])}, "num_processes": 2}
    sizes = {"num_generations": 2, "per_device_train_batch_size": 4}
    study = write_study("launch: mpirun -n 2", common={**suite, **sizes})
    with pytest.raises(StudyError) as refused:
        compare.run(study, out=tmp_path / "out", jobs=1)
    message = str(refused.value)
    assert (
        "setting default, start (and 2 more): eval_suite is for runs of one process, and this one is launch" in message
    )
    assert message.count("\n") == 1


def test_runs_that_could_not_begin_are_not_started(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path
) -> None:
    missing = {"train_data": str(tmp_path / "no.parquet"), "eval_data": str(tmp_path / "nor.parquet")}
    study = write_study(
        methods={"dapo": {"shaping": "none"}, "vgpo": {"use_vllm": True, "vllm_mode": "server"}},
        settings={
            "rows": missing,
            "weights": {"model_name_or_path": str(tmp_path / "none")},
            "words": {"template": "none.jinja"},
            "many": {"num_processes": 8},
        },
    )
    with pytest.raises(StudyError) as refused:
        compare.run(study, out=tmp_path / "out", jobs=2)
    head, *lines = str(refused.value).splitlines()
    assert head == f"{study}: no run was started because these would fail:"
    expected = [
        "setting rows: data: there is no file or folder .*no.parquet",
        "setting rows: held-out data: there is no file or folder .*nor.parquet",
        "setting weights: processor: model_name_or_path: there is no folder '.*none'",
        "setting words: data: there is no prompt template 'none.jinja'",
        "setting words: held-out data: there is no prompt template 'none.jinja'",
        r"setting rows, method vgpo \(and 3 more\): packages: use_vllm needs vllm",
        r"setting many, start \(and 2 more\): processes: .* num_processes=8, but 1 started",
    ]
    assert [bool(re.match(f"  {text}", line)) for text, line in zip(expected, lines, strict=True)] == [True] * 7
    assert list((tmp_path / "out").rglob("started")) == []


@pytest.mark.process
def test_what_never_began_takes_a_mended_study(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "vgpo fails").mkdir(parents=True)
    methods = {"dapo": {"shaping": "none"}, "vgpo": {"strength": 0.5}}
    assert not compare.run(write_study(methods=methods), out=out, jobs=2)
    (out / "vgpo fails").rmdir()
    methods["vgpo"]["strength"] = 0.4
    assert compare.run(write_study(methods=methods), out=out, jobs=2)
    assert times_started(out, "default/vgpo/seed-0") == 2
    assert times_started(out, "default/dapo/seed-0") == 1
    assert yaml.safe_load((out / "runs/default/vgpo/seed-0/recipe.yaml").read_text())["strength"] == 0.4


@pytest.mark.process
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


@pytest.mark.process
def test_a_changed_study_does_not_take_old_runs(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compare.run(write_study(), out=out, jobs=2)
    with pytest.raises(StudyError) as refused:
        compare.run(write_study(common={"max_steps": 5}), out=out, jobs=2)
    assert str(refused.value).count("a run with other settings (max_steps)\n") == 5  # names them all
    # Seeds may be added, also before the others.
    assert compare.run(write_study(seeds=[2, 0, 1]), out=out, jobs=2)
    assert times_started(out, "default/dapo/seed-0") == times_started(out, "default/dapo/seed-2") == 1


@pytest.mark.process
def test_two_cannot_share_a_folder(write_study: Callable[..., Path], stand_in: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        compare.locked(out),
        pytest.raises(StudyError, match=rf"in use by another vgpo compare \(process {os.getpid()}"),
    ):
        compare.run(write_study(), out=out, jobs=1)
    assert compare.run(write_study(), out=out, jobs=2)


@pytest.mark.process
def test_a_run_that_was_left_behind_keeps_the_folder_locked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with compare.locked(out) as lock:
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(StudyError, match="or by a run that it left behind"), compare.locked(out):
        pass
    left.communicate(b"\n")
    with compare.locked(out) as lock:
        fcntl.flock(lock, fcntl.LOCK_UN)


def compare_and_send(signals: Sequence[tuple[Path, int]], study: Path, out: Path) -> object:
    """Compare, and send ourselves each signal once its file is there; the exit status."""

    def send() -> None:
        for mark, number in signals:
            while not mark.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    # A test runner in the background of a shell is started deaf to SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(SystemExit) as stop:
            compare.run(study, out=out, jobs=1)
    finally:
        signal.signal(signal.SIGINT, before)
    sender.join()
    return stop.value.code


@pytest.mark.process
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_runs_save(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, number: int, status: int
) -> None:
    out = tmp_path / "out"
    (out / "vgpo waits").mkdir(parents=True)
    run = out / "runs/default/vgpo/seed-0"
    assert compare_and_send([(run / "training", number)], write_study(), out) == status
    assert (run / "saved").exists()
    assert times_started(out, "default/dapo/seed-1") == 0
    assert (out / "table.md").exists()  # of what is done


@pytest.mark.process
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_another_signal_ends_runs_at_once(
    write_study: Callable[..., Path], stand_in: None, tmp_path: Path, second: int
) -> None:
    out = tmp_path / "out"
    (out / "vgpo takes its time").mkdir(parents=True)
    run, started = out / "runs/default/vgpo/seed-0", time.monotonic()
    signals = [(run / "training", signal.SIGTERM), (run / "told", second)]
    assert compare_and_send(signals, write_study(), out) == 143  # of the first
    assert time.monotonic() - started < 30  # its step would take a minute
    assert not (run / "saved").exists()
    with compare.locked(out):  # nobody is left behind
        pass


@pytest.fixture
def suite(tmp_path: Path, few_rows: tuple[Path, Path]) -> dict[str, object]:
    """A suite of two tasks whose rows are in a folder."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for task in ("wemath", "counting"):
        shutil.copy(few_rows[1], folder / f"{task}.parquet")
    return {"tasks": ["wemath", "counting"], "data": str(folder)}


@pytest.mark.process
def test_a_suite_gives_a_table_of_benchmarks_by_methods_and_a_file(
    write_study: Callable[..., Path],
    stand_in: None,
    suite: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert compare.run(write_study(suite=suite), out=out, jobs=2)
    # Accuracies of two seeds differ by a point: their mean is half a point off, and that is its standard error.
    _, table = capsys.readouterr().out.split("default: benchmarks")
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[1:9]]
    assert lines == [
        ["accuracy, %", "start", "dapo", "vgpo"],
        ["seeds", "1", "2", "2"],
        ["We-Math", "30.0", "50.5 ± 0.5", "60.5 ± 0.5"],
        ["SuperClevr Counting", "10.0*", "30.5 ± 0.5*", "40.5 ± 0.5*"],
        ["Overall", "20.0*", "40.5 ± 0.5*", "50.5 ± 0.5*"],
        ["Protocol: papo-greedy"],
        ["±: standard error of the mean over seeds"],
        ["* partial: rows of the benchmark, or tasks of the average, are missing"],
    ]
    head, *rows = (out / "benchmarks.csv").read_text().splitlines()
    assert head == "setting,method,seed,column,accuracy,standard_error,is_partial"
    assert len(rows) == 5 * 3
    assert rows[0] == "default,start,0,wemath,0.3,0.01,False"
    assert rows[-2:] == ["default,vgpo,1,counting,0.41,0.01,True", "default,vgpo,1,Overall,0.51,,True"]


@pytest.mark.process
def test_a_suite_that_is_added_evaluates_the_runs_that_are_done(
    write_study: Callable[..., Path], stand_in: None, suite: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert compare.run(write_study(), out=out, jobs=2)
    assert not (out / "benchmarks.csv").exists()
    (out / "vgpo fails").mkdir()
    assert not compare.run(write_study(suite=suite), out=out, jobs=2)
    (out / "vgpo fails").rmdir()
    assert compare.run(write_study(suite=suite), out=out, jobs=2)
    assert times_started(out, "default/dapo/seed-1") == 2
    assert times_started(out, "default/vgpo/seed-1") == 3
    assert yaml.safe_load((out / "runs/default/start/suite.yaml").read_text())["tasks"] == ["wemath", "counting"]
    assert compare.run(write_study(suite={**suite, "batch_size": 2}), out=out, jobs=2)
    assert times_started(out, "default/vgpo/seed-1") == 3


def test_a_changed_suite_does_not_take_old_scores(
    write_study: Callable[..., Path], suite: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    study = load_study(write_study(suite=suite))
    assert study.suite is not None
    run = StudyRun(out / "runs/default/vgpo/seed-0")
    run.path.mkdir(parents=True)
    study_file.write_recipe(run.suite_path, study.suite.values)
    study_file.write_recipe(run.recipe_path, next(one for one in study.runs if one.method == "vgpo").values)
    stand_in_run.write_run(run.path, "vgpo", 0)
    study_checks.check_runs_match(study, out)
    study_checks.check_inputs_unchanged(study, out)
    for change, keys in (({**suite, "limit": 3}, "limit"), (None, "tasks, data, protocol")):
        with pytest.raises(StudyError, match=rf"vgpo/seed-0: evaluated on another suite \({keys}\)\n"):
            study_checks.check_runs_match(load_study(write_study(suite=change)), out)
    (run.path / "suite/scores.json").write_text("{}")
    with pytest.raises(StudyError, match=r"vgpo/seed-0: suite/scores\.json changed after the run was done\n"):
        study_checks.check_runs_match(study, out)
    (tmp_path / "benchmarks/counting.parquet").write_text("other rows")
    with pytest.raises(StudyError, match="began:\n  setting default: suite, data of counting\n"):
        study_checks.check_inputs_unchanged(study, out)
    # Without its scores the run keeps its training, and takes the suite of today.
    shutil.rmtree(run.path / "suite")
    run.unseal()
    study_checks.check_runs_match(load_study(write_study(suite={**suite, "limit": 3})), out)


@pytest.mark.parametrize(
    ("changes", "missing", "lines"),
    [
        ({"data": "none"}, (), ["suite: data: there is no folder 'none'; name a folder with the data of the tasks"]),
        ({"tasks": ["wemath", "mmk12"]}, (), ["suite: data: there are no data of MMK12 in .*benchmarks; looked for"]),
        ({"data": {"wemath": "none.parquet", "counting": "nor.parquet"}}, (), [
            "suite: data: .*none.parquet", "suite: data: .*nor.parquet",
        ]),
        ({}, ("inspect_ai",), ["suite: tasks: the runner of benchmarks, inspect-ai, is not installed: pip install"]),
        ({"protocol": "lenient"}, ("math_verify",), ["suite: protocol: .*math-verify.* is not installed: pip"]),
    ],
)  # fmt: skip
def test_a_suite_that_could_not_be_evaluated_stops_the_study_before_its_first_run(
    write_study: Callable[..., Path],
    stand_in: None,
    suite: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    missing: Sequence[str],
    lines: Sequence[str],
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StudyError) as refused:
        compare.run(write_study(suite={**suite, **changes}), out=tmp_path / "out", jobs=2)
    for line in lines:
        assert re.search(f"no run was started because these would fail:(.|\\n)*  {line}", str(refused.value))
    assert list((tmp_path / "out").rglob("started")) == []


def test_a_suite_does_not_ignore_fields_of_the_recipe(
    write_study: Callable[..., Path], stand_in: None, suite: dict[str, object], tmp_path: Path
) -> None:
    common = {"chat_template_kwargs": {"enable_thinking": False}, "max_steps": 4}
    with pytest.raises(StudyError, match="setting default: suite cannot be evaluated with chat_template_kwargs; remo"):
        compare.run(write_study(suite=suite, common=common), out=tmp_path / "out", jobs=2)
