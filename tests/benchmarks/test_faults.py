"""The fault campaign injects what it says, and notices what a fault has changed."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from benchmarks import fault_kinds, fault_lab, faults
from rich.console import Console
from safetensors.numpy import save_file

from vgpo.data import DataError, check_dataset, load_dataset
from vgpo.data.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_small_campaign_survives_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--seeds", "2", "--kinds", "truncate", "kill_in_save"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1:4] for line in lines[-3:-1]] == [
        ["truncate", "survived", "identical"],
        ["kill_in_save", "survived", "identical"],
    ]
    assert json.loads(lines[-1]) == {"injected": 2, "survived": 2, "identical": 2, "resumed": 2}
    assert not list((tmp_path / "out" / "runs").iterdir())

    injected = []
    monkeypatch.setattr(faults, "inject", lambda lab, kind, seed: injected.append(seed) or result(seed, kind))
    again = faults.campaign(
        fault_lab.Lab.build(tmp_path / "out"), ["truncate", "kill_in_save"], 3, Console(file=io.StringIO())
    )
    assert injected == [2]
    assert [line.seed for line in again] == [0, 1, 2]


def result(seed: int, kind: str) -> faults.Result:
    return faults.Result(seed, kind, "nothing", survived=True, identical=True, resumed=True, seconds=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what is compared."""
    final = tmp_path / "run" / "checkpoints" / "final"
    final.mkdir(parents=True)
    save_file({"weight": np.arange(4.0)}, final / "model.safetensors")
    for name in ("metrics", "rollouts"):
        lines = [{"step": step, "time": 0.5, "reward": 1.0} for step in (1, 2)]
        (tmp_path / "run" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def test_differences_are_named_with_their_place(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    assert fault_lab.differences(run, other) == []
    save_file({"weight": np.arange(4.0) + 1e-12}, other / "checkpoints" / "final" / "model.safetensors")
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text().replace("0.5", "0.7"))
    with (other / "rollouts.jsonl").open("a") as rollouts:
        rollouts.write("{}\n")
    assert fault_lab.differences(run, other) == [
        "weights differ",
        "rollouts differ from the end on (2 lines, expected 3)",
    ]
    text = (run / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(text.replace('"step": 2, "time": 0.5, "reward": 1.0', '"step": 2'))
    assert "metrics differ from line 2 on (2 lines, expected 2)" in fault_lab.differences(run, other)
    assert "metrics" not in str(fault_lab.differences(run, other, ("time", "reward")))


def test_a_run_that_left_nothing_is_not_identical_to_another(tmp_path: Path) -> None:
    assert len(fault_lab.differences(tmp_path / "none", tmp_path / "none")) == 3


def test_damage_changes_one_file(tmp_path: Path) -> None:
    ways = set()
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        files = {name: bytes(range(50)) for name in ("manifest.json", "model.safetensors")}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        said = fault_kinds.damage(folder, random.Random(seed))
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        [changed] = [name for name in files if left.get(name) != files[name]]
        assert said.startswith(changed)
        ways.add(said.split()[1])
    assert ways == {"cut", "deleted", "with"}


def test_sets_of_the_campaign_are_what_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lab = fault_lab.Lab.build(tmp_path)
    whole, moved = (fingerprint(load_dataset(str(path))) for path in (lab.data, lab.moved_data))
    assert whole == moved
    changed = [words[1] for name, words in lab.changes if name == "data set"]
    assert len({whole, *(fingerprint(load_dataset(path)) for path in changed)}) == 3
    for path in lab.hostile_data.values():
        with pytest.raises(DataError, match="field 'images'"):
            check_dataset(load_dataset(str(path)))


def test_a_fault_that_is_not_survived_keeps_its_folder_and_says_why(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(trial: fault_lab.Trial) -> None:
        trial.said = "something"
        trial.run.mkdir(parents=True)
        fault_lab.expect(False, "exit status 1, expected 0")

    monkeypatch.setitem(fault_kinds.KINDS, "lost", lost)
    monkeypatch.setattr(fault_lab.Lab, "clean", lambda lab, seed, processes=1: run)
    lab = fault_lab.Lab(tmp_path, tmp_path / "recipe.yaml")
    log = io.StringIO()
    [found] = faults.campaign(lab, ["lost"], 1, Console(file=log))
    assert (found.survived, found.identical, found.resumed, found.fault) == (False, False, False, "something")
    assert found.found.startswith("exit status 1, expected 0; kept: ")
    assert (tmp_path / "runs" / "0-lost").is_dir()
    assert "LOST" in log.getvalue()


def test_a_campaign_of_other_code_is_not_gone_on_with(tmp_path: Path) -> None:
    faults.refuse_other_code(tmp_path)
    faults.refuse_other_code(tmp_path)
    (tmp_path / "commit.txt").write_text("0000")
    with pytest.raises(SystemExit, match="holds a campaign at commit 0000"):
        faults.refuse_other_code(tmp_path)
