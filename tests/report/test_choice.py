"""What a folder stands for: a run's final weights or newest checkpoint, the only run in it, or one of several."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vgpo import cli
from vgpo.cli import app
from vgpo.commands import evaluate_suite
from vgpo.places import checkpoint_fault, hub_dataset, missing
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.choice import checkpoint_of, runs_below


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunFolder]:
    def make(name: str, *checkpoints: str) -> RunFolder:
        folder = RunFolder.create(tmp_path / name, {"max_steps": 3}, seed=0, command=[])
        folder.log_metrics({"step": 1, "reward": 0.5})
        for one in checkpoints:
            (folder.checkpoints_path / one).mkdir(parents=True)
            (folder.checkpoints_path / one / "manifest.json").write_text("{}")
        return folder

    return make


def test_a_run_stands_for_its_final_weights_or_else_for_its_newest_checkpoint(new_run, tmp_path: Path) -> None:
    done, begun = new_run("done", "checkpoint-2", "final"), new_run("begun", "checkpoint-9", "checkpoint-10")
    (begun.checkpoints_path / "checkpoint-11").mkdir()  # without a manifest: still being written
    final, newest = done.final_path, begun.checkpoints_path / "checkpoint-10"
    assert checkpoint_of(str(done.path)) == (str(final), f"checkpoint: {final} (final weights)")
    assert checkpoint_of(str(done.checkpoints_path))[0] == str(final)
    note = f"checkpoint: {newest} (newest checkpoint; there are no final weights)"
    assert checkpoint_of(str(begun.path)) == (str(newest), note)
    assert checkpoint_of(str(newest)) == (str(newest), None)
    with pytest.raises(RunFolderError, match=r"empty is a run without a checkpoint; name a checkpoint folder"):
        checkpoint_of(str(new_run("empty").path))


def test_a_folder_around_runs_stands_for_the_only_one_or_lists_them(new_run, tmp_path: Path) -> None:
    run = new_run("study/runs/default/vgpo/seed-0", "final")
    assert checkpoint_of(str(tmp_path / "study"))[0] == str(run.final_path)
    other = new_run("study/runs/default/dapo/seed-0", "final")
    assert list(runs_below(tmp_path / "study")) == [other.path, run.path]
    with pytest.raises(RunFolderError) as told:
        checkpoint_of(str(tmp_path / "study"))
    assert str(told.value).splitlines() == [
        f"{tmp_path}/study holds 2 runs; name one of them:", f"  {other.path}", f"  {run.path}"
    ]  # fmt: skip


def test_folders_of_a_run_hidden_ones_and_deep_ones_hold_no_runs(new_run, tmp_path: Path) -> None:
    for place in (".trash/old", "data/copy", "a/b/c/d/deep"):
        new_run(f"study/{place}", "final")
    assert checkpoint_of(str(tmp_path / "study")) == (str(tmp_path / "study"), None)
    run = new_run("study/a/b/c/found", "final")
    assert checkpoint_of(str(tmp_path / "study"))[0] == str(run.final_path)


def test_a_long_list_of_runs_is_cut(new_run, tmp_path: Path) -> None:
    for number in range(23):
        new_run(f"study/{number:02}")
    with pytest.raises(RunFolderError, match=r"(?s)holds 23 runs; .*/study/19\n  and 3 more$"):
        checkpoint_of(str(tmp_path / "study"))


def test_the_other_checkpoint_of_an_inspection_is_chosen_too(new_run, tmp_path: Path) -> None:
    run = new_run("done", "checkpoint-3")
    words = ["inspect", "toy", "--compare", str(run.path), "--data", str(tmp_path / "gone.parquet")]
    done = CliRunner().invoke(app, words)
    note = f"checkpoint: {run.checkpoints_path}/checkpoint-3 (newest checkpoint; there are no final weights)"
    assert done.stdout.splitlines() == [note]
    assert "there is no file or folder" in done.stderr


def test_a_model_of_a_server_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(evaluate_suite, "run", lambda checkpoint, **_: asked.append(checkpoint))
    words = ["eval", "name of a model", "--suite", "vgpo", "--engine"]
    assert CliRunner().invoke(app, [*words, "openai-api/here"]).exit_code == 0
    assert asked == ["name of a model"]
    assert "there is no folder 'name of a model'" in CliRunner().invoke(app, [*words, "vllm"]).stderr


def test_the_embedded_model_a_hub_id_and_a_checkpoint_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("toy", "Qwen/Qwen2.5-VL-3B-Instruct", str(tmp_path)):
        assert checkpoint_of(name) == (name, None)


@pytest.mark.parametrize(
    ("command", "words"), [("eval", ["--data", "toy:test"]), ("inspect", []), ("focus-check", ["toy:test"])]
)
def test_commands_print_the_choice_and_name_a_mistyped_folder(new_run, tmp_path: Path, command: str, words) -> None:
    run = new_run("done", "final")
    done = CliRunner().invoke(app, [command, str(run.path), *words, "--out", str(tmp_path / "out.json")])
    assert f"checkpoint: {run.final_path} (final weights)" in done.stdout
    assert done.exit_code == 2  # there are no weights in it
    mistyped = CliRunner().invoke(app, [command, str(tmp_path / "dnoe"), *words])
    assert f"there is no folder '{tmp_path}/dnoe' (did you mean 'done'?)" in mistyped.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "toy", "--data", "gone.parquet"], "there is no file or folder 'gone.parquet' (looked at /"),
        (["inspect", "toy", "--data", "./gone@test"], "there is no file or folder './gone'"),
        (["focus-check", "toy", "gone.jsonl"], "there is no file or folder 'gone.jsonl'"),
        (["compare", "gone.yaml"], "there is no study file 'gone.yaml'"),
        (["report", "gone"], "there is no folder 'gone' (looked at /"),
        (["export", "gone", "out"], "there is no folder 'gone'"),
        (["merge", "./gone", "out"], "there is no folder './gone'"),
    ],
)
def test_a_missing_path_is_named_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "say_loading", None)  # which comes before all that takes time
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_report_draws_the_runs_of_a_folder_together_unless_they_are_too_many(new_run, tmp_path: Path) -> None:
    for name in ("dapo", "vgpo"):
        new_run(f"quickstart/{name}")
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "quickstart"), "--out", str(out)])
    runs = [f"run: {tmp_path}/quickstart/{name}" for name in ("dapo", "vgpo")]
    assert done.stdout.splitlines() == [*runs, f"report: {out}"]
    for number in range(7):
        new_run(f"quickstart/more/{number}")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "quickstart"), "--out", str(out)])
    assert done.exit_code == 2
    assert f"{tmp_path}/quickstart holds 9 runs; name one of them:\n  {tmp_path}/quickstart/dapo\n" in done.stderr


def test_a_text_that_is_no_path_is_still_named() -> None:
    for name in ("a\0b/c/d", "x" * 5000, "~nobody_of_this_name/x"):
        assert missing(name, "folder").startswith("there is no folder ")
        assert checkpoint_fault(name)
    assert hub_dataset("owner/name/one (of 2)") == ("owner/name", "one (of 2)")
    assert hub_dataset("owner/name.parquet") is hub_dataset("./name") is hub_dataset("/a/b") is None
