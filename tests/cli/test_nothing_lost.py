"""No start overwrites a run, no change goes unnoticed, and what a power cut takes is named and repaired or refused."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import yaml
from benchmarks.fault_lab import differences
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.cli.resuming import SETTINGS, STEPS, Start, contents, evaluation
from vgpo.cli import app
from vgpo.data import check
from vgpo.recipe import train
from vgpo.run import RunFolder, RunFolderError, locked
from vgpo.run.outputs import OWN_FILES, check_not_of_a_run
from vgpo.toy import checkpoint_path

WAYS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
REPAIRED = ("config.yaml", "environment.json", "evaluation.json", "finished.json", "interrupted.json")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start ends where the trainer would be built."""

    def same_run(*args: object, **kwargs: object) -> None:
        raise train.RecipeError("same run")

    monkeypatch.setattr(train, "build_trainer", same_run)


def listed(stderr: str) -> list[str]:
    return sorted(line.split(" was ")[0].strip() for line in stderr.splitlines() if " was " in line)


# Damage


@pytest.mark.train
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_files_that_a_power_cut_took_are_named_and_written_again(
    start: Start, whole: Path, stopped: Callable[[int], Path], way: Callable[[Path], object]
) -> None:
    run = stopped(2)
    is_missing = way is Path.unlink  # which finished.json and interrupted.json are of any stopped run
    for name in REPAIRED[3:]:
        (run / name).write_bytes((whole / "finished.json").read_bytes())
    image = next((run / "images").iterdir())
    for path in [*(run / name for name in REPAIRED), *([] if is_missing else [image])]:
        way(path)
    named = REPAIRED[: 3 if is_missing else None]
    done = start(run)
    assert done.exit_code == 0, done.output
    assert [name for name in REPAIRED if f"repaired: {run / name}: " in done.stdout] == [*named]
    assert is_missing or f"{run / 'images'}: 1 damaged image(s), the first {image.name}" in done.stdout
    assert differences(run, whole) == []
    assert evaluation(run) == evaluation(whole)
    [resumed] = RunFolder.open(run).read_resumes()
    assert sorted(line.split(": ")[0] for line in resumed.changes if "image" not in line) == sorted(
        str(run / name) for name in named
    )
    assert RunFolder(run).read_config()["seed"] == RunFolder(whole).read_config()["seed"]


def without_line(*numbers: int) -> Callable[[Path], object]:
    def remove(path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for number, line in enumerate(lines) if number not in numbers))

    return remove


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


LOST = {
    "metrics are missing": ("metrics.jsonl", Path.unlink, "missing, expected the"),
    "metrics are empty": ("metrics.jsonl", WAYS["empty"], "found 0 bytes, expected the"),
    "metrics are zeros": ("metrics.jsonl", WAYS["zeros"], "found different bytes (the sha256 differs)"),
    "rollouts are missing": ("rollouts.jsonl", Path.unlink, "the rollouts of step 1 are missing"),
    "rollouts are empty": ("rollouts.jsonl", WAYS["empty"], "the rollouts of step 1 are missing"),
    "a rollout is missing": (
        "rollouts.jsonl",
        without_line(0),
        "the rollouts of step 1 are not those that were written",
    ),
    "a step of rollouts is missing": (
        "rollouts.jsonl",
        without_line(*range(4)),
        "the rollouts of step 1 are missing",
    ),
    "a rollout is another": (
        "rollouts.jsonl",
        lambda path: path.write_text(path.read_text().replace('"answer": "', '"answer": "1', 1)),
        "the rollouts of step 1 are not those that were written",
    ),
    "metrics are a folder": ("metrics.jsonl", become_a_folder, "it is not a regular file"),
    "rollouts are a folder": ("rollouts.jsonl", become_a_folder, "it is not a regular file"),
    "resumes are a folder": ("resumes.jsonl", Path.mkdir, "it is not a regular file"),
    "resumes are zeros": ("resumes.jsonl", lambda path: path.write_bytes(bytes(9) + b"\n"), "not valid JSON"),
}


@pytest.mark.train
@pytest.mark.parametrize(("name", "way", "found"), LOST.values(), ids=LOST)
def test_what_nothing_can_bring_back_is_an_error_that_changes_nothing(
    start: Start, stopped: Callable[[int], Path], name: str, way: Callable[[Path], object], found: str
) -> None:
    run = stopped(2)
    way(run / name)
    before = contents(run)
    done = start(run)
    assert done.exit_code == 2, done.output
    assert f"{run} has lost data that the run wrote before step 2:\n  {run / name}" in done.stderr
    assert found in done.stderr
    assert "set allow_changes: true to resume without" in done.stderr
    assert contents(run) == before


@pytest.mark.train
def test_a_run_goes_on_without_what_it_has_lost_if_that_is_meant(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(2)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(bytes(len(lines[0])) + b"\n" + b"".join(lines[1:]))
    done = start(run, "--allow_changes", "true")
    assert done.exit_code == 0, done.output
    assert "lost: " in done.stdout
    assert [line["step"] for line in RunFolder.open(run).read_metrics()] == [2, 3, 4, 4]
    assert differences(run, whole) == ["metrics differ from line 1 on (4 lines, expected 5)"]
    assert "metrics.jsonl" in RunFolder.open(run).read_resumes()[0].changes[0]


@pytest.mark.train
def test_damage_behind_the_checkpoint_costs_nothing(start: Start, whole: Path, stopped: Callable[[int], Path]) -> None:
    run = stopped(2)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (run / name).open("ab") as file:
            file.write(bytes(50) + b"\n")
    done = start(run)
    assert done.exit_code == 0, done.output
    assert differences(run, whole) == []


@pytest.mark.train
def test_final_weights_that_are_damaged_are_saved_again(start: Start, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    final = run / "checkpoints" / "final"
    (final / "model.safetensors").write_bytes(b"")
    (final / "notes.txt").write_text("of a user")
    done = start(run)
    assert done.exit_code == 0, done.output
    assert f"repaired: {final}: model.safetensors has 0 bytes" in done.stdout
    assert differences(run, whole) == []
    assert (run / "checkpoints" / "unusable-final" / "notes.txt").is_file()


@pytest.mark.train
def test_what_is_in_the_place_of_final_weights_is_kept(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(2)
    (run / "checkpoints" / "final").write_text("of a user")
    (run / "images" / "folder.png").mkdir()
    done = start(run)
    assert done.exit_code == 0, done.output
    assert differences(run, whole) == []
    assert (run / "checkpoints" / "unusable-final").read_text() == "of a user"


@pytest.mark.train
def test_a_damaged_list_of_pinned_checkpoints_is_found_at_the_start(
    start: Start, stopped: Callable[[int], Path]
) -> None:
    run = stopped(2)
    (run / "checkpoints" / "pinned.json").write_bytes(b"")
    before = contents(run)
    done = start(run)
    assert done.exit_code == 2
    assert "pinned.json: expected a JSON object" in done.stderr
    assert contents(run) == before


# Nothing is overwritten


@pytest.mark.train
@pytest.mark.parametrize("left", ["a note", "final weights"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(
    start: Start, stopped: Callable[[int], Path], whole: Path, left: str
) -> None:
    run = stopped(0)
    if left == "a note":
        (run / "newest_checkpoint.json").write_text('{"step": 4}')
    else:
        shutil.copytree(whole / "checkpoints" / "final", run / "checkpoints" / "final")
    before = contents(run)
    for words in ([], ["--allow_changes", "true", "--max_steps", "9"]):
        done = start(run, *words)
        assert done.exit_code == 2
        assert f"{run / 'checkpoints'} contains no checkpoint, although" in done.stderr
        assert f"To start over anyway, delete {run}" in done.stderr
        assert contents(run) == before


@pytest.mark.train
def test_a_newest_checkpoint_that_is_missing_is_named(
    start: Start, whole: Path, stopped: Callable[[int], Path]
) -> None:
    run = stopped(2)
    (run / "newest_checkpoint.json").write_text('{"step": 3}')
    done = start(run)
    assert done.exit_code == 0, done.output
    assert "skipped: checkpoint-3: it was saved but is missing" in done.stdout
    assert differences(run, whole) == []


@pytest.mark.parametrize("name", [*OWN_FILES, "checkpoints/checkpoint-2/report.html", "images/page.html"])
def test_no_command_writes_over_a_file_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    for mark in ("config.yaml", "environment.json"):
        (tmp_path / "run" / mark).touch()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder in ("run", "link", "other/../run"):
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(RunFolderError, match="belongs to the run in"):
            check_not_of_a_run(tmp_path / folder / name)
    for free in ("run/report.html", "run/inspection.json", "config.yaml", "other/metrics.jsonl"):
        check_not_of_a_run(tmp_path / free)


@pytest.mark.train
def test_every_option_that_names_an_output_refuses_files_of_a_run(whole: Path) -> None:
    commands = {
        "report": [str(whole)],
        "eval": ["toy", "--data", "toy:test"],
        "inspect": [str(whole / "checkpoints" / "final")],
        "compare": ["study.yaml"],
        "quickstart": [],
        "data check": ["recipe.yaml"],
    }
    before = contents(whole)
    place = whole / "checkpoints" / f"checkpoint-{STEPS}"
    for name, words in commands.items():
        option = "--html" if name == "data check" else "--out"
        done = CliRunner().invoke(app, [*name.split(), *words, option, str(place / "new.html")])
        assert done.exit_code == 2, name
        assert "belongs to the run in" in done.stderr, name
    for name in ("warmstart", "data"):
        done = CliRunner().invoke(app, ["toy", name, str(place)])
        assert done.exit_code == 2
        assert "belongs to the run in" in done.stderr
    assert contents(whole) == before


# One trainer


@pytest.mark.process
def test_a_second_trainer_is_refused_until_the_first_is_killed(start: Start, tmp_path: Path) -> None:
    holder = "from pathlib import Path; from vgpo.run import locked; import os, sys, time\n"
    holder += (
        "with locked(Path(sys.argv[1])):\n os.fork() or time.sleep(300)\n print('held', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "run")], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        done = start(tmp_path / "run")
        assert done.exit_code == 2
        assert f"another process of vgpo (process {process.pid} on " in done.stderr
        assert f") is writing to {tmp_path / 'run'}. Nothing was changed." in done.stderr
        os.kill(process.pid, signal.SIGKILL)  # a child that was forked lives on, and holds nothing
        process.wait()
        with locked(tmp_path / "run"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def hold_briefly(folder: Path, seconds: float) -> None:
    for _ in range(20):
        with contextlib.suppress(RunFolderError), locked(folder):
            assert not (folder / "held").exists()
            (folder / "held").touch()
            time.sleep(seconds)
            (folder / "held").unlink()


@pytest.mark.process
def test_the_lock_of_a_new_folder_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=hold_briefly, args=(tmp_path / "run", n * 2e-4)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not (tmp_path / "run").exists()


# The same run


@pytest.mark.train
@pytest.mark.parametrize("step", [0, 2], ids=["before the first checkpoint", "from a checkpoint"])
@pytest.mark.usefixtures("no_training")
def test_a_change_is_found_before_and_after_the_first_checkpoint(
    start: Start, stopped: Callable[[int], Path], step: int
) -> None:
    run = stopped(step)
    before = contents(run)
    done = start(run, "--learning_rate", "1e-5")
    assert (done.exit_code, listed(done.stderr)) == (2, ["learning_rate"])
    assert "same run" in start(run).stderr
    (run / "run_identity.json").write_bytes(b"")
    assert ("run_identity.json: not valid JSON" in start(run).stderr) == (step == 0)
    assert {**contents(run), "run_identity.json": ""} == {**before, "run_identity.json": ""}


OTHER_REWARDS = """
def first(completions, meta, **kwargs):
    return [float(len(completion[0]["content"]) % 2) for completion in completions]

def second(completions, **kwargs):
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds all that a run needs: model, images in files, a column for rewards, rewards, template."""
    folder = tmp_path_factory.mktemp("portable")
    shutil.copytree(checkpoint_path(), folder / "model")
    (folder / "images").mkdir()
    lines = []
    for row in range(6):
        Image.new("RGB", (56, 56), (40 * row, 0, 0)).save(folder / "images" / f"{row}.bmp")
        lines.append({"images": [f"images/{row}.bmp"], "problem": f"{row}?", "answer": "1", "unit": "cm"})
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewards.py").write_text(OTHER_REWARDS)
    (folder / "prompt.jinja").write_text("{{ problem }} Answer:")
    recipe = {
        **SETTINGS,
        "model_name_or_path": "model",
        "train_data": "train.jsonl",
        "eval_data": "test.jsonl",
        "template": "prompt.jinja",
        "rewards": ["rewards.py:first", "rewards.py:second"],
        "dynamic_sampling": False,
        "filter_reward": "first",
        "run_dir": "run",
        "max_steps": 2,
        "beta": 0.1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def resume_in(folder: Path, *words: str) -> tuple[int, str]:
    """`vgpo train --resume true` with `folder` as the working directory: exit status and standard error."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["train", "--config", "recipe.yaml", "--resume", "true", *words])
    return done.exit_code, done.stderr


@pytest.fixture(scope="module")
def begun(portable: Path) -> Path:
    assert resume_in(portable, "--max_steps", "1") == (0, "")
    return portable


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def redraw(folder: Path) -> None:
    path = folder / "images" / "3.bmp"
    size = path.stat().st_size
    Image.new("RGB", (56, 56), (1, 2, 3)).save(path)
    assert path.stat().st_size == size


def other_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights[min(weights)] = weights[min(weights)] + 1e-3
    save_file(weights, path, {"format": "pt"})


EDITS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "an image": (redraw, ["data set", "held-out set"]),
    "a column that a reward sees": (edit("train.jsonl", '"unit": "cm"', '"unit": "m"'), ["data set"]),
    "the held-out set": (edit("test.jsonl", '"answer": "1"', '"answer": "2"'), ["held-out set"]),
    "the template": (edit("prompt.jinja", "Answer", "Reply"), ["template"]),
    "a reward": (edit("rewards.py", "% 2", "% 3"), ["rewards"]),
    "the order of rewards": (
        edit("recipe.yaml", "- rewards.py:first\n- rewards.py:second", "- rewards.py:second\n- rewards.py:first"),
        ["rewards"],
    ),
    "the reference model": (other_weights, ["start model"]),
    "the chat template": (edit("model/chat_template.jinja", "assistant", "model"), ["chat template"]),
    "what is subtracted from pixels": (
        edit("model/processor_config.json", "0.48145466", "0.5"),
        ["image_processor.image_mean", "video_processor.image_mean"],
    ),
    "the model's config": (edit("model/config.json", '"rope_theta": 10000', '"rope_theta": 20000'), ["model config"]),
}


@pytest.mark.train
@pytest.mark.parametrize(("change", "names"), EDITS.values(), ids=EDITS)
@pytest.mark.usefixtures("no_training")
def test_whatever_decides_what_is_trained_on_or_how_it_is_judged_counts(
    begun: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    names: list[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = shutil.copytree(begun, tmp_path / "moved")
    (folder / "run" / "finished.json").unlink()
    status, said = resume_in(folder, "--max_steps", "1")
    assert (status, said) == (2, "error: same run\n")
    change(folder)
    status, said = resume_in(folder, "--max_steps", "1")
    assert status == 2
    assert "chat template" in names or "same run" not in said
    assert set(names) <= set(listed(said))


@pytest.mark.train
@pytest.mark.usefixtures("no_training")
def test_images_are_decoded_again_only_where_they_have_changed(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    decoded = []
    monkeypatch.setattr(check, "verify_image", decoded.append)
    folder = shutil.copytree(begun, tmp_path / "moved")
    (folder / "run" / "finished.json").unlink()
    assert "same run" in resume_in(folder, "--max_steps", "1")[1]
    assert decoded == []
    redraw(folder)
    assert "data set was" in resume_in(folder, "--max_steps", "1")[1]
    assert len(decoded) == 12
    decoded.clear()
    (folder / "images" / "0.bmp").unlink()
    os.mkfifo(folder / "images" / "0.bmp")
    assert "data set was" not in resume_in(folder, "--max_steps", "1")[1]
    assert len(decoded) >= 6


# Every setting of logging and storage

LOGGING = {
    "windows that steps do not fill": ["--logging_steps", "3", "--log_rollouts_steps", "2", "--save_steps", "3"],
    "epochs, and rollouts beyond their limit": [
        "--logging_strategy", "epoch", "--logging_first_step", "true", "--max_rollout_bytes", "60000",
        "--log_rollouts_groups", "2",
    ],
    "nothing": ["--logging_strategy", "no", "--log_rollouts_steps", "0"],
}  # fmt: skip


@pytest.mark.train
@pytest.mark.parametrize("words", LOGGING.values(), ids=LOGGING)
def test_what_was_logged_and_stored_is_the_same_after_a_resume(start: Start, tmp_path: Path, words: list[str]) -> None:
    words = [*words, "--evaluate_before", "false"]
    whole = tmp_path / "whole"
    assert start(whole, *words).exit_code == 0
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (whole / "checkpoints").glob("checkpoint-*"))
    assert steps[-1] == STEPS
    for step in {steps[0], steps[-1]}:
        run = shutil.copytree(whole, tmp_path / f"from-{step}")
        (run / "finished.json").unlink()
        for later in steps:
            if later > step:
                shutil.rmtree(run / "checkpoints" / f"checkpoint-{later}")
        done = start(run, *words)
        assert done.exit_code == 0, done.output
        assert [found for found in differences(run, whole) if "0 lines" not in found] == []
        assert sorted(path.name for path in (run / "images").iterdir()) == sorted(
            path.name for path in (whole / "images").iterdir()
        )
