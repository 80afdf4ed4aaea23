"""The studies that come with the project can be run."""

from pathlib import Path

import pytest

from vgpo.commands.study_file import load_study
from vgpo.shaping import SHAPINGS

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
RIVALS = {"entropy", "kl_perception", "pgpo", "pepo"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_can_be_run(path: Path) -> None:
    if path.stem == "rivals" and not SHAPINGS.keys() >= RIVALS:
        pytest.skip("needs shapings that are not registered")
    study = load_study(path)
    assert f"vgpo compare studies/{path.name}" in path.read_text()
    assert len(study.seeds) >= (3 if path.stem == "sweeps" else 5)
    trained = [run for run in study.runs if not run.is_start]
    assert len(trained) == len(study.methods) * len(study.seeds) * len(study.settings)
    assert all(run.values["save_strategy"] == "steps" for run in trained)  # else a stopped run begins anew


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} == {
        "grains", "methods", "presets", "rivals", "schedule", "sweeps", "where"
    }  # fmt: skip
