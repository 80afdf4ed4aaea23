"""One run of a study for real: trained, looked at, sealed, and gone on with where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.study.stand_in_run import SEALED
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
    run_one: Callable[[str], StudyRun], monkeypatch: pytest.MonkeyPatch
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

    # Killed behind the training: nothing is trained again.
    for name in ("done.json", "probe.json", "usage.json"):
        (one.path / name).unlink()
    monkeypatch.setattr(study_run, "train_recipe", lambda *args, **kwargs: pytest.fail("trained again"))
    again = run_one("dapo")
    assert again.is_done
    assert json.loads(again.probe_path.read_text()) == found
    assert json.loads(again.usage_path.read_text())["peak_memory_bytes"] is None

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


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert (study_run.memory_of(gpu), study_run.peak_memory(gpu)) == ("the GPU cuda:1", 7)
    assert study_run.memory_of(cpu) == "process"
    assert study_run.peak_memory(cpu) > 50e6
