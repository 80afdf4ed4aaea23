"""What version 0.1 wrote is read; its checkpoint is refused with a reason."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.inspection import Inspection
from vgpo.metric_names import RENAMED
from vgpo.report.watched import WatchedRun
from vgpo.run import RunFolder
from vgpo.study.results import STEP_COLUMNS

FIXTURES = Path(__file__).with_name("version_0_1")
STEPS = 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the working directory."""
    copy = shutil.copytree(FIXTURES, tmp_path / "version_0_1")
    monkeypatch.chdir(copy)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return copy


def invoke(*words: str) -> str:
    """The output of a command that must succeed."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_recipe_and_its_data_are_read() -> None:
    output = invoke("data", "check", "recipe.yaml")
    assert "12 rows" in output
    assert "4 rows" in output


def test_a_finished_run_is_read(folder: Path) -> None:
    run = RunFolder.open(folder / "run")
    assert run.read_config()["lora_r"] == 2
    assert run.read_environment().commit.startswith("009bfd0")
    assert [line["step"] for line in run.read_metrics()] == [*range(1, STEPS + 1), STEPS]
    rollouts = list(run.read_rollouts())
    assert [rollout.step for rollout in rollouts] == [step for step in range(1, STEPS + 1) for _ in range(4)]
    assert all((run.path / image).is_file() for rollout in rollouts for image in rollout.media)
    assert [resume.step for resume in run.read_resumes()] == [3]
    assert run.read_evaluation()["after"]["num_questions"] == 4
    assert run.read_finished().step == STEPS
    assert run.read_interrupted() is None


def test_metrics_have_the_names_of_today(folder: Path) -> None:
    run = RunFolder.open(folder / "run")
    written = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    watched = WatchedRun(run.path)
    watched.read()
    read = run.read_metrics()
    assert watched.lines == read
    assert [line["step"] for line in read if "alarm/truncation" in line] == [3, 5, 7]
    for old, new in RENAMED.items():
        values = [line[old] for line in written if old in line]
        assert [line[new] for line in read if new in line] == values, old
        assert not any(old in line for line in read)
        assert values or old == "alarm/groups_alike"  # which this run did not raise


def test_its_rollouts_have_the_advantage_of_each_token(folder: Path) -> None:
    run = RunFolder.open(folder / "run")
    stored = [json.loads(line) for line in run.rollouts_path.read_text().splitlines()]
    records = list(run.read_rollouts())
    for line, record in zip(stored, records, strict=True):
        assert (record.version, record.media, record.tokens) == (1, line["images"], line["tokens"])
        assert record.diagnostics == {name: line[name] for name in ("gate", "token_factor", "rollout_factor")}
        assert record.correct == (line["rewards"]["accuracy_reward"] == 1)
        scale = line["advantage"] * line["rollout_factor"]  # A^V = A_i (1 + psi) (1 + phi) (Eq. 12)
        assert record.token_advantages == pytest.approx([scale * factor for factor in line["token_factor"]])
    assert records[0].token_advantages[0] == pytest.approx(-0.49990001 * 1.03434360 * 0.77059048)
    assert {record.correct for record in records} == {True, False}


def test_an_interrupted_run_is_read(folder: Path) -> None:
    run = RunFolder.open(folder / "interrupted")
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3, 3]
    assert run.read_interrupted().reason == "SIGTERM"
    assert run.read_finished() is None


def test_a_report_shows_both_runs(folder: Path) -> None:
    invoke("report", "run", "interrupted", "--out", "report.html")
    page = (folder / "report.html").read_text()
    data = json.loads(page.split('id="report-data">')[1].split("</script>")[0])
    assert [run["name"] for run in data["runs"]] == ["run", "interrupted"]
    [focus] = [chart["series"] for chart in data["charts"] if chart["id"] == "focus"]
    assert [len(series["values"]) for series in focus] == [STEPS, 3]
    assert [run["num_rollouts"] for run in data["runs"]] == [4 * STEPS, 12]
    assert data["runs"][0]["alarms"] == [{"name": "truncation", "num_lines": 3, "first_step": 3, "last_step": 7}]


def test_watch_shows_both_runs() -> None:
    finished, interrupted = (invoke("watch", run, "--once") for run in ("run", "interrupted"))
    assert f"step {STEPS} of {STEPS}" in finished
    assert "truncation, steps 3 to 7" in finished
    assert f"step 3 of {STEPS}" in interrupted
    assert "SIGTERM" in interrupted


def test_its_checkpoint_is_refused_with_a_reason_and_nothing_is_changed(folder: Path) -> None:
    run = RunFolder.open(folder / "run")
    run.finished_path.unlink()
    before = sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
    done = CliRunner().invoke(app, ["train", "--config", "recipe.yaml", "--resume", "true"])
    assert done.exit_code == 2
    reason = " ".join(done.output.split())
    assert "checkpoint-5: was saved by vgpo 0.1, whose training state this version does not read" in reason
    assert "begin a new run from its weights" in reason
    assert sorted(path.relative_to(run.path) for path in run.path.rglob("*")) == before


def test_an_inspection_is_read_and_drawn(folder: Path) -> None:
    inspection = Inspection.read(folder / "inspection.json")
    assert [len(question["rollouts"]) for question in inspection.questions] == [2, 2]
    assert len(inspection.to_dataframe()) > 10
    page = inspection.to_html()
    for question in inspection.questions:
        assert json.dumps(question["rollouts"][0]["tokens"][0])[1:-1] in page


def test_a_finished_study_is_found_done_and_drawn_again(folder: Path) -> None:
    study = folder / "study"
    drawn = {path.name: path.read_text() for path in study.glob("*.*") if path.suffix in (".csv", ".html", ".md")}
    for name in drawn:
        (study / name).unlink()
    output = invoke("compare", "study.yaml", "--out", "study")
    assert "5 runs, 5 of them done" in output
    assert {name for name in drawn if (study / name).is_file()} == drawn.keys()
    rows = list(csv.DictReader((study / "runs.csv").read_text().splitlines()))
    for row in rows:  # columns that version 0.1 had not
        del row["roughness"], row["tokens"], row["cpu_seconds"]
    assert rows == list(csv.DictReader(drawn["runs.csv"].splitlines()))
    steps = list(csv.DictReader((study / "curves.csv").read_text().splitlines()))
    factors = [(step["method"], step["token_factor"]) for step in steps]
    for step in steps:  # columns that version 0.1 did not have
        for name in ("token_factor", *STEP_COLUMNS):
            del step[name]
    assert steps == list(csv.DictReader(drawn["curves.csv"].splitlines()))
    assert all(bool(factor) == (method == "vgpo") for method, factor in factors)
