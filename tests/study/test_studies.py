"""The studies that come with the project can be run."""

from pathlib import Path

import pytest

from vgpo.study.file import load_study

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_can_be_run(path: Path) -> None:
    study = load_study(path)
    assert f"vgpo compare studies/{path.name}" in path.read_text()
    assert all(len(one.seeds) >= 3 for one in study.comparisons)
    trained = [run for run in study.runs if not run.is_start]
    assert all(run.values["save_strategy"] == "steps" for run in trained)  # else a stopped run begins anew


def test_the_study_of_the_embedded_model_holds_all_shapings() -> None:
    study = load_study(next(path for path in STUDIES if path.stem == "embedded"))
    (methods,) = [one for one in study.comparisons if one.name == "methods"]
    assert len(methods.seeds) >= 5
    assert {"grpo", "dapo", "entropy", "kl_perception", "pgpo", "pepo", "vgpo"} == set(methods.methods)
    assert len(methods.settings) == 2
