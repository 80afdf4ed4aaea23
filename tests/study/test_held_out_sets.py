"""Further held-out sets of a study: read, compared, and columns of its tables."""

import subprocess

import pytest
import yaml
from rich.console import Console

from tests.study.stand_in_run import write_run
from vgpo.recipe.files import read_mapping
from vgpo.study.checks import fault_of
from vgpo.study.file import StudyError, load_study, write_recipe
from vgpo.study.folder import StudyRun
from vgpo.study.jobs import Workers, folder_of
from vgpo.study.results import grounding_columns, probe_columns, roughness

STUDY = {
    "recipe": "quickstart_dapo",
    "base": "dapo",
    "seeds": [0],
    "methods": {"dapo": {}, "vgpo": {"shaping": "vgpo"}},
    "common": {"max_steps": 2},
}


def load(tmp_path, **keys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **keys}))
    return load_study(path)


def test_each_setting_has_the_sets_that_it_names_or_those_of_the_file(tmp_path):
    settings = {"a": {}, "b": {"max_completion_length": 30, "held_out_sets": {"edited": "e.parquet"}}}
    study = load(tmp_path, settings=settings, held_out_sets={"font": "f.parquet"})
    assert {one.setting: one.held_out_sets for one in study.runs} == {
        "a": {"font": "f.parquet"},
        "b": {"edited": "e.parquet"},
    }
    assert all("held_out_sets" not in one.values for one in study.runs)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["e.parquet"], "held_out_sets is a list"),
        ({"edited": 3}, "edited is 3, expected a dataset as in eval_data"),
        ({"a/b": "e.parquet"}, "the name 'a/b' becomes a folder"),
    ],
)
def test_sets_that_cannot_be_read_are_named(tmp_path, sets, message):
    with pytest.raises(StudyError, match=message):
        load(tmp_path, held_out_sets=sets)


def test_a_run_gets_the_files_that_the_study_wrote_of_its_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    sets = {"edited": "toy:test:edited=true", "font": "f.parquet"}
    planned = load(tmp_path, held_out_sets=sets).runs[0]
    written = {planned.setting: {"edited": "data/edited.parquet"}}
    Workers(tmp_path, {planned.setting: {}}, 1, 0, Console(), sets=written).launch(planned, 0)
    found = read_mapping(folder_of(tmp_path, planned).held_out_path)
    assert found == {"edited": "data/edited.parquet", "font": "f.parquet"}


def test_a_finished_run_that_was_evaluated_on_other_sets_is_not_of_the_study(tmp_path):
    planned = load(tmp_path, held_out_sets={"edited": "e.parquet"}).runs[0]
    run = StudyRun(tmp_path / "run")
    run.path.mkdir()
    write_recipe(run.recipe_path, planned.values)
    write_recipe(run.held_out_path, {"edited": "data/e.parquet"})
    write_run(run.path, "dapo", 0)
    run.seal()
    assert fault_of(run, planned, None) is None
    write_recipe(run.held_out_path, {"edited": "data/e.parquet", "font": "f.parquet"})
    assert fault_of(run, planned, None) == "evaluated on other held-out sets (font)"


def test_accuracies_are_columns_of_the_second_table():
    part = {"num_responses": 1, "length": 2.0, "entropy": 0.1, "focus": 0.5, "late_early_ratio": 1.0, "deciles": []}
    found = {
        "accuracy": {"true": {"accuracy": 0.5}},
        "responses": {"all": part, "correct": part, "wrong": part},
        "held_out_sets": {"edited": 0.25},
    }
    row = probe_columns(found)
    assert row["accuracy_on_edited"] == 0.25
    (*_, last) = grounding_columns([row, {}])
    assert (last.column, last.heading, last.factor) == ("accuracy_on_edited", "edited, %", 100)


def test_roughness_is_the_noise_around_a_slow_curve():
    assert roughness([0.0, 1.0, 0.0, 1.0]) == pytest.approx(2**-0.5)
    assert roughness([0.3, 0.3, 0.3]) == 0
    assert roughness([0.3]) is None
