"""The studies that come with the project can be run."""

from pathlib import Path

import pytest

from vgpo.evaluation.benchmarks import SUITES
from vgpo.study.file import Study, load_study

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.fixture(params=STUDIES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def on_cpu(path: Path, folder: Path) -> Study:
    """A study with `use_cpu: true`: those for GPUs can be looked at on any machine."""
    copy = folder / path.name
    copy.write_text(path.read_text().replace("\ncommon:\n", "\ncommon:\n  use_cpu: true\n"))
    return load_study(copy)


def named(name: str) -> Path:
    return next(path for path in STUDIES if path.stem == name)


def test_a_study_can_be_run(path: Path, tmp_path: Path) -> None:
    study = on_cpu(path, tmp_path)
    assert f"vgpo compare studies/{path.name}" in path.read_text()
    assert all(len(one.seeds) >= 3 for one in study.comparisons)
    trained = [run for run in study.runs if not run.is_start]
    assert all(run.values["save_strategy"] == "steps" for run in trained)  # else a stopped run starts over


def test_the_study_of_the_embedded_model_holds_all_shapings() -> None:
    study = load_study(named("embedded"))
    (methods,) = [one for one in study.comparisons if one.name == "methods"]
    assert len(methods.seeds) >= 5
    assert {"grpo", "dapo", "entropy", "kl_perception", "pgpo", "pepo", "vgpo"} == set(methods.methods)
    assert len(methods.settings) == 2


def test_the_study_of_the_paper_holds_its_experiments(tmp_path: Path) -> None:
    study = on_cpu(named("paper"), tmp_path)
    runs = study.runs
    pair = {"dapo", "vgpo"}
    ablations = {"intra", "inter", "step", "exponential", "full", "entropy", "kl_perception"}
    expected = {"3b-virl39k": pair, "7b-virl39k": pair | ablations, "7b-geometry3k": pair, "7b-mmk12": pair}
    trained = {(run.setting, run.method, run.seed): run for run in runs if not run.is_start}
    assert set(trained) == {(one, method, seed) for one in expected for method in expected[one] for seed in (0, 1, 2)}
    assert all(run.launch[:2] == ("accelerate", "launch") and (ROOT / run.launch[-1]).is_file() for run in runs)
    assert {run.values["train_data"] for run in runs if run.setting == "7b-mmk12"} == {"FanqingM/MMK12@train"}
    model = "model_name_or_path"
    assert {run.values[model] for run in runs if run.setting == "3b-virl39k"} == {"Qwen/Qwen2.5-VL-3B-Instruct"}
    changed = {method: trained["7b-virl39k", method, 0].values for method in pair | ablations}
    assert (changed["dapo"]["shaping"], changed["vgpo"]["shaping"]) == ("none", "vgpo")
    assert (changed["intra"]["inter"], changed["inter"]["intra"]) == (False, False)
    assert study.suite is not None
    assert [one.name for one in study.suite.benchmarks] == list(SUITES["vgpo"])
    assert (study.suite.protocol, study.suite.limit) == ("papo-greedy", None)
    assert (changed["full"]["tail_ratio"], changed["vgpo"]["tail_ratio"]) == (1.0, 0.5)
