"""Round trips of every file, refusals, and disks that fill up."""

import errno
import math
import re
import resource
import subprocess
from enum import StrEnum
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.report.run_records import evaluation, handed_over, rollout
from vgpo.cli import app
from vgpo.report import report_data
from vgpo.run import RunFolder, RunFolderError, resume_folder, storage
from vgpo.run.records import FolderState


class Schedule(StrEnum):
    LINEAR = "linear"


def test_create_describes_the_run(make_run):
    folder = make_run(lr=1e-6, schedule=Schedule.LINEAR, dtype=torch.bfloat16, hub_token="hf_x", nested={"a": (1,)})
    assert folder.read_config() == {
        "lr": 1e-6,
        "schedule": "linear",
        "dtype": "torch.bfloat16",
        "hub_token": "<hidden>",
        "nested": {"a": [1]},
    }
    environment = folder.read_environment()
    assert (environment.seed, environment.command) == (3, ["vgpo", "train"])
    assert environment.commit is None
    assert environment.dirty is None
    assert environment.started.endswith("+00:00")
    assert environment.versions["torch"] == torch.__version__.split("+")[0] or environment.versions["torch"]
    assert environment.cpu_count > 0
    assert environment.memory_bytes > 1 << 28
    assert (folder.path / "code.diff").read_bytes() == b""


def test_create_records_commit_and_diff(make_run, outside_git: Path):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    source = outside_git / "model.py"
    source.write_text("x = 1\n")
    git("init", "--quiet")
    git("add", "model.py")
    git("commit", "--quiet", "--message", "start")
    clean = make_run("clean")
    source.write_text("x = 2\n")
    (outside_git / "new.py").write_text("")
    changed = make_run("changed")

    assert clean.read_environment().commit == git("rev-parse", "HEAD")
    assert clean.read_environment().dirty is False
    assert (clean.path / "code.diff").read_text() == ""
    assert changed.read_environment().dirty is True
    assert changed.read_environment().untracked == ["new.py"]
    assert "-x = 1\n+x = 2\n" in (changed.path / "code.diff").read_text()


def test_credentials_on_the_command_line_are_hidden(tmp_path: Path):
    command = ["vgpo", "train", "--hub-token", "s3cret", "--api_key=s3cret", "--seed", "4"]
    folder = RunFolder.create(tmp_path / "run", {}, seed=4, command=command)
    shown = folder.read_environment().command
    assert shown == ["vgpo", "train", "--hub-token", "<hidden>", "--api_key=<hidden>", "--seed", "4"]
    assert not any(b"s3cret" in file.read_bytes() for file in folder.path.iterdir() if file.is_file())


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "rollouts.jsonl", "evaluation.json", "checkpoints"])
def test_create_refuses_a_folder_that_holds_a_run(tmp_path: Path, name: str):
    (tmp_path / name).write_text("kept")
    with pytest.raises(RunFolderError, match=rf"already contains a run \({name}\)\. Choose another output folder"):
        RunFolder.create(tmp_path, {}, seed=0, command=[])
    assert (tmp_path / name).read_text() == "kept"


def test_create_refuses_a_folder_with_a_checkpoint(tmp_path: Path):
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"already contains a run \(checkpoints\)"):
        RunFolder.create(tmp_path, {}, seed=0, command=[])


def test_create_takes_a_folder_with_other_files(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()  # a trainer makes it, empty, before anything is known to work
    RunFolder.create(tmp_path, {}, seed=0, command=[])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_create_below_a_file_says_what_to_do(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run/images could not be created: .*Choose another output folder"):
        RunFolder.create(tmp_path / "file" / "run", {}, seed=0, command=[])


def test_open(make_run, tmp_path: Path):
    assert RunFolder.open(make_run().path).read_config() == {}
    with pytest.raises(RunFolderError, match=r"is not a run folder \(no config\.yaml\)"):
        RunFolder.open(tmp_path / "nothing")


def test_metrics_round_trip(make_run):
    folder = make_run()
    assert folder.read_metrics() == []
    folder.log_metrics({"step": 1, "loss": 0.25, "reward": math.nan, "grad_norm": -math.inf})
    folder.log_metrics({"step": 2, "loss": 0.5})
    assert folder.read_metrics() == [
        {"step": 1, "loss": 0.25, "reward": None, "grad_norm": None},
        {"step": 2, "loss": 0.5},
    ]


def test_a_tensor_is_refused_before_anything_is_written(make_run):
    folder = make_run()
    with pytest.raises(TypeError, match=r"found a Tensor.*\.tolist\(\)"):
        folder.log_metrics({"step": 1, "loss": torch.tensor(1.0)})
    assert not folder.metrics_path.exists()


def test_rollouts_round_trip_and_save_each_picture_once(make_run):
    folder = make_run()
    red, same_red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "red", "blue"))
    rollouts = [rollout(1, images=[red, blue]), rollout(1, images=[same_red]), rollout(1, images=[], focus=None)]
    folder.write_rollouts(*handed_over(rollouts[:2]))
    folder.write_rollouts(*handed_over(rollouts[2:]))

    read = list(folder.read_rollouts())
    assert read == [record for record, _ in rollouts]
    assert read[0].media[0] == read[1].media[0] != read[0].media[1]
    assert len(list(folder.images_path.iterdir())) == 2
    with Image.open(folder.path / read[0].media[1]) as stored:
        assert stored.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "F"])
def test_pictures_of_any_mode_are_stored(make_run, mode: str):
    folder = make_run()
    folder.write_rollouts(*handed_over([rollout(images=[Image.new(mode, (3, 2))])]))
    [record] = folder.read_rollouts()
    with Image.open(folder.path / record.media[0]) as stored:
        assert stored.size == (3, 2)


HOSTILE = [
    "</script><script>1</script>",
    "\u2028\u2029\x85",
    "\x00\x1b[31m\x7f",
    "\ud800 alone",
    "\n\r\n",
    "x" * 1_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_comes_back_as_it_was(make_run, text: str):
    folder = make_run(template=text[:1000])
    folder.write_rollouts(*handed_over([rollout(tokens=[text], completion=text, problem=text, answer=text)]))
    [record] = folder.read_rollouts()
    assert [record.completion, record.problem, record.answer] == [text] * 3
    assert record.tokens == [text]
    assert len(folder.rollouts_path.read_bytes().splitlines()) == 1
    assert folder.read_config() == {"template": text[:1000]}


def test_evaluation_round_trip(make_run):
    folder = make_run()
    assert folder.read_evaluation() is None
    written = {"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.55, 0.65)}
    folder.write_evaluation(written)
    assert folder.read_evaluation() == written


def test_a_line_left_unfinished_by_a_killed_process_is_dropped(make_run):
    folder = make_run()
    folder.log_metrics({"step": 1})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert folder.read_metrics() == [{"step": 1}]
    folder.log_metrics({"step": 2})
    assert folder.read_metrics() == [{"step": 1}, {"step": 2}]


def test_a_broken_line_is_named(make_run):
    folder = make_run()
    folder.log_metrics({"step": 1})
    with folder.metrics_path.open("ab") as file:
        file.write(b"oops\n[1]\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2: not valid JSON"):
        folder.read_metrics()


BROKEN = {
    "config.yaml": {
        None: r"is not a run folder \(no config",
        "": r"config\.yaml: found null, expected a mapping",
        "- a\n": r"config\.yaml: found a list of 1, expected a mapping",
        "a: [1,": r"config\.yaml: not valid YAML \(.*\); restore it",
        "a: 2020-13-45": r"config\.yaml: not valid YAML \(month must be in",
    },
    "environment.json": {
        None: r"environment\.json could not be read: No such file or directory; restore it",
        "": r"environment\.json: not valid JSON",
        "{}": r"environment\.json: commit: missing",
    },
    "metrics.jsonl": {
        "{}\n": r"metrics\.jsonl, line 1: step: missing; restore or delete it",
        '{"step": 1}\n{"step": "2"}\n': r"metrics\.jsonl, line 2: step: found \"2\", expected a number",
        '{"step": null}\n': r"metrics\.jsonl, line 1: step: found null, expected a number",
    },
    "rollouts.jsonl": {
        '{"step": 1}\n': r"rollouts\.jsonl, (last line|line 1): group: missing; .* and \d more; restore or delete it",
        '{"version": 1}\n': r"rollouts\.jsonl, (last line|line 1): step: missing; group: missing",
        '{"version": 2}\n': r"rollouts\.jsonl, (last line|line 1): found version 2, expected 1 or none; read the run",
    },
    "resumes.jsonl": {'{"step": 1}\n': r"resumes\.jsonl, line 1: started: missing"},
    "evaluation.json": {
        "[]": r"evaluation\.json: found a list of 0, expected a mapping",
        '{"after": 1}': r"evaluation\.json, after: found 1, expected an object",
        '{"after": {"accuracy": 1.0}}': r"evaluation\.json, after: low: missing; high: missing",
    },
}


@pytest.mark.parametrize(
    ("name", "text", "told"), [(name, *case) for name, cases in BROKEN.items() for case in cases.items()]
)
def test_what_is_broken_is_named_by_report_and_watch(make_run, name: str, text: str | None, told: str):
    path = make_run(max_steps=1).path
    (path / name).unlink(missing_ok=True)
    if text is not None:
        (path / name).write_text(text)
    for command in (["report", str(path), "--out", str(path / "report.html")], ["watch", str(path), "--once"]):
        done = CliRunner().invoke(app, command, env={"COLUMNS": "500"})
        # An environment that is lost says nothing that a watcher needs.
        if (name, text, command[0]) != ("environment.json", None, "watch"):
            assert (done.exit_code, type(done.exception)) == (2, SystemExit)
            assert re.search(told, done.stderr)


def test_an_answer_that_is_no_text_is_shown(make_run):
    folder = make_run()
    folder.write_rollouts(*handed_over([rollout(answer=42)]))
    assert report_data([folder.path])["runs"][0]["rollouts"][0]["reference"] == "42"


@pytest.mark.parametrize("error", [ValueError("no part"), KeyboardInterrupt(), OSError(errno.EIO, "not of this file")])
def test_parts_that_cannot_be_had_leave_nothing_behind(tmp_path: Path, error: BaseException):
    (tmp_path / "whole").write_bytes(b"before")

    def parts():
        yield b"half"
        assert (tmp_path / ".whole.partial").read_bytes() == b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        storage.write_file(tmp_path / "whole", parts())
    assert caught.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert (tmp_path / "whole").read_bytes() == b"before"


def fail_after(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let the next writes put down `num_bytes` and then meet a full disk."""

    def write_all(path: Path, data: bytes, append: bool = False) -> None:
        with path.open("ab" if append else "wb") as file:
            file.write(data[:num_bytes])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_all", write_all)


@pytest.mark.parametrize("num_bytes", [0, 1, 30])
def test_full_disk_leaves_the_metrics_intact(make_run, monkeypatch: pytest.MonkeyPatch, num_bytes: int):
    folder = make_run()
    folder.log_metrics({"step": 40, "loss": 0.1})
    before = folder.metrics_path.read_bytes()
    fail_after(monkeypatch, num_bytes)
    with pytest.raises(RunFolderError) as caught:
        folder.log_metrics({"step": 41, "loss": 0.2, "text": "a" * 100})
    assert str(caught.value) == (
        f"{folder.metrics_path} could not be written: No space left on device. Everything up to step 40 is "
        "intact. Free space on this disk and run the same command with --resume true."
    )
    assert folder.metrics_path.read_bytes() == before


def test_a_refusal_is_not_taken_for_a_full_disk_nor_for_a_run_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write_all(path: Path, data: bytes, append: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage, "write_all", write_all)
    with pytest.raises(RunFolderError, match=r"Nothing was written\. Correct what the error names, and run again\.$"):
        storage.write_file(tmp_path / "page.html", b"page")
    with pytest.raises(RunFolderError, match=r"Correct what the error names, and ask again\.$"):
        storage.append_lines(tmp_path / "lines.jsonl", b"{}\n", then="ask again")


def test_full_disk_on_the_first_line(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = make_run()
    fail_after(monkeypatch, 5)
    with pytest.raises(RunFolderError, match="It contained no line before, and contains none now"):
        folder.log_metrics({"step": 1})
    assert folder.read_metrics() == []


def test_full_disk_writes_none_of_a_batch_of_rollouts(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = make_run()
    folder.write_rollouts(*handed_over([rollout(4, images=[])]))
    length = len(rollout(5, images=[])[0].model_dump_json())
    fail_after(monkeypatch, length + 50)  # the first record fits, the second does not
    with pytest.raises(RunFolderError, match=r"rollouts\.jsonl could not .* up to step 4 is intact"):
        folder.write_rollouts(*handed_over([rollout(5, images=[])] * 2))
    assert [record.step for record in folder.read_rollouts()] == [4]


def test_full_disk_keeps_the_older_file(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = make_run()
    folder.write_evaluation({"before": None})
    files = sorted(folder.path.iterdir())
    fail_after(monkeypatch, 3)
    with pytest.raises(RunFolderError, match=r"evaluation\.json could not be written: No space left on device"):
        folder.write_evaluation({"before": None, "after": evaluation(0.5, 0.4, 0.6)})
    with pytest.raises(RunFolderError, match=r"images/.*\.png could not be written"):
        folder.write_rollouts(*handed_over([rollout()]))
    assert folder.read_evaluation() == {"before": None}
    assert sorted(folder.path.iterdir()) == files
    assert list(folder.images_path.iterdir()) == []


def test_a_run_that_could_not_start_for_lack_of_space_can_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as full:
        fail_after(full, 0)
        with pytest.raises(RunFolderError, match="No space left on device"):
            RunFolder.create(tmp_path / "run", {}, seed=0, command=[])
    RunFolder.create(tmp_path / "run", {}, seed=0, command=[])


def test_the_system_cuts_a_write_short(make_run):
    """No stand-in: the kernel writes part of the line and refuses the rest."""
    folder = make_run()
    folder.log_metrics({"step": 1})
    before = folder.metrics_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(RunFolderError, match=r"File too large\. Everything up to step 1 is intact"):
            folder.log_metrics({"step": 2, "text": "a" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.metrics_path.read_bytes() == before
    folder.log_metrics({"step": 2})
    assert folder.read_metrics() == [{"step": 1}, {"step": 2}]


def test_config_is_plain_yaml(make_run):
    folder = make_run(recipe=Path("a/b"), nothing=None, flag=True)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {
        "recipe": "a/b",
        "nothing": None,
        "flag": True,
    }


def test_the_mark_of_an_interrupted_run_of_an_older_version_is_read_and_removed_by_a_resume(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", {"beta": 0.1}, seed=0, command=["vgpo"])
    folder.write_interrupted(3, ValueError("no space"))
    assert (folder.path / "interrupted.json").is_file()
    (folder.path / "interrupted.json").rename(folder.path / "broken_off.json")
    assert folder.read_interrupted().step == 3
    resume_folder(folder, 0, FolderState(), seed=0, command=["vgpo"])
    assert folder.read_interrupted() is None
    assert not (folder.path / "broken_off.json").exists()
    folder.write_interrupted(4, ValueError("no space"))
    assert (folder.path / "interrupted.json").is_file()
