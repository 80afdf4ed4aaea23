"""`vgpo watch` on made-up runs in every state, at every size, with text that would steer a terminal."""

import io
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.hostile.texts import NASTY
from tests.report.run_records import evaluation, handed_over, rollout
from vgpo.cli import app
from vgpo.commands import watch
from vgpo.report import characters, dashboard
from vgpo.report.watched import WatchedRun, throughput_of
from vgpo.run import RunFolder, RunFolderError, resume_folder
from vgpo.run.storage import append_records

NOW = 10_000.0
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
CONFIG = {"model_name_or_path": "models/Qwen2.5-VL-7B", "shaping": "vgpo", "max_steps": 80, "eval_data": None}


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., RunFolder]:
    """A run folder that has begun; `config` on top of a usual one."""

    def make(name: str = "seed-0", **config: object) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.images_path.mkdir(parents=True)
        (folder.path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
        return folder

    return make


def log(folder: RunFolder, *steps: int, **more: object) -> None:
    """Lines of these steps, two seconds and 3000 tokens per step, the last of 80 at `NOW`."""
    for step in steps:
        line = {"step": step, "epoch": step / 40, "time": NOW - 2 * (80 - step), "num_tokens": 3000.0 * step}
        figures = {"entropy": 0.1 + step / 1000, "completions/mean_length": 20.0 + step, "focus/mean": 0.5}
        figures |= {"focus/late_early_ratio": 1.1, "grad_norm": 0.5 + step % 3, "reward": step / 80}
        phases = {"time/generation": 1.0, "time/update": 0.75, "time/reward": 0.25}
        folder.log_metrics({**line, **figures, **phases, "rewards/accuracy_reward/mean": step / 80, **more})


def resume(folder: RunFolder, step: int, moment: float = NOW) -> None:
    """Resume from `step`, as `RunFolder.resume` does, at that moment."""
    lines = [line for line in folder.read_metrics() if line["step"] <= step and "train_runtime" not in line]
    folder.metrics_path.unlink()
    for line in lines:
        folder.log_metrics(line)
    started = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    append_records(folder.resumes_path, [{"step": step, "started": started}])


def end(folder: RunFolder, step: int = 80) -> None:
    folder.log_metrics({"step": step, "epoch": step / 40, "time": NOW, "train_runtime": 160.0})


def read(folder: RunFolder) -> WatchedRun:
    watched = WatchedRun(folder.path)
    watched.read()
    return watched


def text_of(watched: WatchedRun, width: int = 100, height: int = 40, now: float = NOW) -> str:
    return "\n".join(line.plain for line in dashboard.view(watched, width, height, now))


def test_a_run_that_goes_on(make_folder):
    folder = make_folder()
    log(folder, *range(1, 61))
    shown = text_of(read(folder), now=NOW - 40)
    assert "seed-0 · Qwen2.5-VL-7B · vgpo · running" in shown
    # 60 of 80 steps of 2 s and 3000 tokens each: 20 x 2 s are left.
    assert "step 60 of 80 ████████████░░░░ 75 % · 2.0 s a step · 1,500 tokens/s · 40 s left" in shown
    assert "generation 50 % · reward 12 % · update 38 %" in shown
    assert "no checkpoint yet" in shown
    assert "alarms: none" in shown
    for title, newest in [("Training accuracy", "0.75"), ("Response length", "80"), ("Entropy", "0.16")]:
        assert re.search(rf"{title} +{re.escape(newest)}\b", shown)
    for title, newest in [("Focus", "0.5"), ("Late / early focus", "1.1"), ("Gradient norm", "0.5")]:
        assert re.search(rf"{title} +{re.escape(newest)}\b", shown)
    assert "Reward" not in shown


def test_benchmarks_show_their_newest_accuracy(make_folder):
    folder = make_folder()
    log(folder, 1, 2)
    assert "benchmarks" not in text_of(read(folder))
    folder.log_metrics({"step": 2, "epoch": 0.05, "time": NOW, "eval_suite/mmk12/accuracy": 0.5})
    scores = {"eval_suite/counting/accuracy": 0.25, "eval_suite/mmk12/accuracy": 0.625, "eval_suite/mmk12/no_box": 0.1}
    folder.log_metrics({"step": 4, "epoch": 0.1, "time": NOW, **scores})
    assert "benchmarks at step 4: counting 25.0 %, mmk12 62.5 %" in text_of(read(folder))


def test_the_reward_stands_in_for_accuracy(make_folder):
    folder = make_folder()
    log(folder, 1, 2, **{"rewards/accuracy_reward/mean": None, "reward": 0.125})
    assert re.search(r"Reward +0\.125", text_of(read(folder)))


def test_steps_that_epochs_make(make_folder):
    folder = make_folder(max_steps=-1, num_train_epochs=3)
    log(folder, 10, 20)  # an epoch is 40 steps
    assert read(folder).planned_steps == 120
    assert "step 20 of 120" in text_of(read(folder))


def test_where_the_checkpoint_is_and_what_was_skipped(make_folder):
    folder = make_folder()
    log(folder, 1, 2, **{"guard/skipped_steps": 3.0, "grader/timeouts": 0.0})
    for name in ("checkpoint-9", "checkpoint-10", ".saving-checkpoint-20", "final", "checkpoint-x"):
        (folder.checkpoints_path / name).mkdir(parents=True)
        (folder.checkpoints_path / name / "manifest.json").write_text("{}")
    (folder.checkpoints_path / "checkpoint-30").mkdir()  # without a manifest it is not whole
    watched = read(folder)
    step, moment = watched.checkpoint
    assert step == 10
    assert "checkpoint-10, 3 min ago · steps skipped 3 · grader timeouts 0" in text_of(watched, now=moment + 180)


def test_a_checkpoint_that_is_deleted_while_it_is_looked_at(make_folder, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    gone = folder.checkpoints_path / "checkpoint-10" / "manifest.json"
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [gone])
    assert read(folder).checkpoint is None


def test_alarms_that_hold_and_that_did(make_folder):
    folder = make_folder()
    log(folder, 1)
    log(folder, 2, 3, **{"alarm/zero_reward_std": 1.0})
    log(folder, 4, 5, **{"alarm/entropy_collapse": 1.0})
    shown = text_of(read(folder))
    assert "ALARM: entropy_collapse since step 4" in shown
    assert "earlier alarms: zero_reward_std, steps 2 to 3" in shown
    log(folder, 6)
    assert "ALARM" not in text_of(read(folder))


def test_a_run_that_has_not_begun(make_folder, tmp_path: Path):
    watched = read(RunFolder(tmp_path / "to-come"))
    assert not watched.begun
    assert "no run in" in text_of(watched)
    assert "started, no step logged yet" in text_of(read(make_folder()))


def test_a_run_that_is_over_says_so(make_folder):
    folder = make_folder()
    log(folder, *range(1, 81))
    assert not read(folder).over
    end(folder)
    watched = read(folder)
    assert watched.over
    shown = text_of(watched, now=NOW + 1e6)
    assert "finished" in shown
    assert "left" not in shown


def test_held_out_questions_come_after_training(make_folder):
    folder = make_folder(eval_data="test.parquet")
    folder.write_evaluation({"before": evaluation(0.4, 0.35, 0.45)})
    log(folder, *range(1, 81))
    end(folder)
    assert not read(folder).over
    assert "training finished 0.0 s ago; no held-out accuracy after it yet" in text_of(read(folder))
    # A run killed during them looks like this forever: the message stays true.
    assert "training finished 10 h 0 min ago; no held-out accuracy after it yet" in text_of(
        read(folder), now=NOW + 36e3
    )
    folder.write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.55, 0.65)})
    assert read(folder).over
    assert "held-out accuracy before 40.0 %, after 60.0 %" in text_of(read(folder))


def test_a_run_that_was_stopped_is_over_before_its_end(make_folder):
    folder = make_folder(eval_data="test.parquet")
    log(folder, *range(1, 31))
    end(folder, 30)
    assert read(folder).over
    assert "stopped before its last step" in text_of(read(folder))


def test_a_run_that_an_error_ended_says_by_what(make_folder):
    folder = RunFolder.create(make_folder().path / "new", CONFIG, seed=0, command=[])
    log(folder, *range(1, 31))
    folder.write_interrupted(30, ValueError("no picture\x1b[2J in row 7\nsecond line"))
    watched = read(folder)
    assert watched.over
    shown = text_of(watched, now=folder.read_interrupted().time + 720)
    assert "stopped 12 min ago by ValueError: no picture[U+001B][2J in row 7" in shown
    assert "second line" not in shown
    assert "left" not in shown
    resume_folder(folder, 20, seed=0, command=[])
    watched.read()
    assert not watched.over


def test_a_run_that_is_silent_is_suspected(make_folder):
    folder = make_folder()
    log(folder, *range(1, 61))  # the last line is 40 s before NOW
    assert "running" in text_of(read(folder), now=NOW - 40 + 59)
    shown = text_of(read(folder), now=NOW - 40 + 600)
    assert "last log line 10 min ago, longest wait before 2.0 s: stuck or killed?" in shown
    slow = make_folder("slow")
    log(slow, 20, 50)  # 60 s between lines
    assert "running" in text_of(read(slow), now=NOW - 60 + 179)
    assert "last log line 3 min ago, longest wait before 60 s" in text_of(read(slow), now=NOW - 60 + 181)


def test_nothing_is_suspected_while_no_wait_is_known(make_folder):
    folder = make_folder()
    log(folder, 80)
    shown = text_of(read(folder), now=NOW + 80)
    assert "last log line 80 s ago; too few lines yet for a throughput" in shown
    assert "stuck" not in shown


def test_silence_is_counted_from_a_resume(make_folder):
    folder = make_folder()
    log(folder, *range(1, 41))  # the last line is 80 s before NOW
    assert "stuck" in text_of(read(folder), now=NOW + 36e3)
    resume(folder, 30, NOW + 36e3 - 1)
    assert "running" in text_of(read(folder), now=NOW + 36e3)
    assert "last log line 5 min ago, longest wait before 2.0 s" in text_of(read(folder), now=NOW + 36e3 + 299)


def test_a_run_that_has_logged_nothing_says_when_it_began(make_folder):
    folder = RunFolder.create(make_folder().path / "new", CONFIG, seed=0, command=[])
    began = datetime.fromisoformat(folder.read_environment().started).timestamp()
    assert "started 20 min ago, no step logged yet" in text_of(read(folder), now=began + 1200)


def test_a_growing_and_a_cut_back_file(make_folder):
    folder = make_folder()
    watched = WatchedRun(folder.path)
    log(folder, 1, 2, 3)
    watched.read()
    assert [line["step"] for line in watched.lines] == [1, 2, 3]
    log(folder, 4)
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 5, "entropy"')
    watched.read()
    assert [line["step"] for line in watched.lines] == [1, 2, 3, 4]
    lines = folder.metrics_path.read_bytes().splitlines(keepends=True)
    folder.metrics_path.write_bytes(b"".join(lines[:2]))
    log(folder, 3, entropy=9.0)
    watched.read()
    assert [(line["step"], line["entropy"]) for line in watched.lines] == [
        (1, 0.101),
        (2, pytest.approx(0.102)),
        (3, 9.0),
    ]
    folder.metrics_path.write_bytes(b"")
    watched.read()
    assert (watched.lines, watched.charts) == ([], [])


def test_a_resumed_run_goes_on_being_over_no_more(make_folder):
    folder = make_folder()
    log(folder, 1, 2)
    end(folder, 2)
    watched = WatchedRun(folder.path)
    watched.read()
    assert watched.over
    resume(folder, 1)
    watched.read()
    assert not watched.over
    assert "resumed from step 1" in text_of(watched)


def test_the_pace_leaves_out_the_time_before_a_resume():
    lines = [
        {"step": 0, "time": 0.0, "num_tokens": 0.0},
        {"step": 10, "time": 20.0, "num_tokens": 1000.0},
        {"step": 20, "time": 9000.0, "num_tokens": 2000.0},  # resumed from step 15
        {"step": 30, "time": 9040.0, "num_tokens": 3000.0},
    ]
    throughput = throughput_of(lines, [15])
    # (20 s + 40 s) / 20 steps; 2000 tokens in 60 s
    assert (throughput.seconds_per_step, throughput.longest) == (3.0, 40.0)
    assert throughput.tokens_per_second == pytest.approx(2000 / 60)
    assert throughput_of(lines[:1], []).seconds_per_step is None
    assert throughput_of([{"step": 1}, {"step": 2}], []).tokens_per_second is None


def test_the_last_rollout_alone_is_read(make_folder):
    folder = make_folder()
    log(folder, 1)
    folder.write_rollouts(*handed_over([rollout(1), rollout(7, reward=0.0, advantage=-0.5)]))
    with folder.rollouts_path.open("r+b") as file:
        file.write(b"x")  # nothing but the last line may matter
    watched = read(folder)
    shown = text_of(watched)
    assert "last stored rollout: step 7" in shown
    assert "▣ How many 7s are in the picture?" in shown
    assert "✗ wrong · expected 2 · 4 tokens · advantage -0.50" in shown
    assert "focus 0.25 to 0.75 ▄▁█▄" in shown or "focus 0.25 to 0.75 ▅▁█▅" in shown
    lines = dashboard.view(watched, 100, 40, NOW)
    [tokens] = [line for line in lines if line.plain == "two: 2."]
    styles = {tokens.plain[span.start : span.end]: str(span.style) for span in tokens.spans}
    assert ":" not in styles  # the lowest focus has no shade
    assert styles[" 2"] == f"{dashboard.SHADES[3]} underline"


def test_a_rollout_without_a_verdict_is_not_graded(make_folder):
    folder = make_folder()
    log(folder, 1)
    folder.write_rollouts(*handed_over([rollout(1, reward=None)]))
    assert "not graded · expected 2 · 4 tokens" in text_of(read(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"focus": None, "images": []},
        {"focus": [None, 0.5, None, 0.5]},
        {"tokens": [], "focus": [], "gate": [], "token_factor": []},
        {"advantage": None, "rewards": {}, "answer": None},
        {"tokens": ["x" * 100_000] * 4},
        {"tokens": ["\u0301" * 300, "漢字" * 80, "\n" * 50, "\t"]},
    ],
)
@pytest.mark.parametrize("size", [(80, 24), (33, 17), (200, 60)])
def test_odd_rollouts_fit(make_folder, changes: dict, size: tuple[int, int]):
    folder = make_folder()
    log(folder, *range(1, 9))
    folder.write_rollouts(*handed_over([rollout(8, **changes)]))
    check_fits(dashboard.view(read(folder), *size, NOW), *size)


def check_fits(lines: list, width: int, height: int) -> None:
    assert len(lines) <= height
    assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)


@pytest.mark.parametrize("width", [1, 10, 25, 40, 53, 80, 132, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
def test_every_size_is_filled_and_not_more(make_folder, width: int, height: int):
    folder = make_folder()
    log(folder, *range(1, 31), **{"alarm/truncation": 1.0})
    folder.write_rollouts(*handed_over([rollout(30, tokens=["word "] * 4000, focus=[0.5, 0.6] * 2000)]))
    lines = dashboard.view(read(folder), width, height, NOW)
    check_fits(lines, width, height)
    if (width, height) == (80, 24):
        shown = "\n".join(line.plain for line in lines)
        assert len(lines) == 24
        assert len(re.findall("Training accuracy|length|Entropy|Focus|Late / early|Gradient", shown)) == 6
        assert shown.count("word") >= 20
        assert shown.endswith("…")


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_text_does_not_reach_the_terminal(make_folder, text: str):
    folder = make_folder(model_name_or_path=text.encode(errors="replace").decode(), shaping="vgpo")
    log(folder, 1, **{f"alarm/{text}": 1.0})
    log(folder, 2)
    texts = {
        "problem": text,
        "answer": text,
        "completion": text,
        "tokens": [text, "[bold red]"],
        "rewards": {text: 1.0},
    }
    folder.write_rollouts(
        *handed_over([rollout(2, **texts, focus=[0.5, 0.6], gate=[True, False], token_factor=[1.0, 1.0])])
    )
    watched = read(folder)
    assert not STEERING.search(text_of(watched).replace("\n", ""))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    watch.show(watched, Console(file=stream, force_terminal=True, width=100, height=50, color_system="truecolor"))
    stream.seek(0)
    # Without what rich itself writes to colour and underline, nothing is left that steers.
    assert not STEERING.search(re.sub(r"\x1b\[[0-9;]*m", "", stream.read()).replace("\n", ""))


def test_a_broken_line_is_an_error_that_names_it(make_folder):
    folder = make_folder()
    folder.metrics_path.write_text("{broken\n")
    done = CliRunner().invoke(app, ["watch", str(folder.path), "--once"])
    assert done.exit_code == 2
    assert "metrics.jsonl, line 1: not valid JSON" in done.stderr


def test_a_line_without_a_step_is_named_until_it_is_mended(make_folder):
    folder = make_folder()
    watched = WatchedRun(folder.path)
    log(folder, 1, 2, 3, 1)  # steps that are repeated
    watched.read()
    log(folder, 2)
    whole = folder.metrics_path.read_bytes()
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"loss": 1.0}\n')
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"seed-0/metrics\.jsonl, line 6: step: missing; restore or delete"):
            watched.read()
    folder.metrics_path.write_bytes(whole)
    log(folder, 3)
    watched.read()
    assert [line["step"] for line in watched.lines] == [1, 1, 2, 3]
    assert watched.charts[0]["series"][0]["steps"] == [1, 1, 2, 3]


def test_once_and_what_is_not_a_terminal(make_folder, tmp_path: Path):
    folder = make_folder()
    log(folder, 1, 2)
    once = CliRunner().invoke(app, ["watch", str(folder.path), "--once"], env={"COLUMNS": "90", "LINES": "30"})
    assert (once.exit_code, once.stderr) == (0, "")
    assert "step 2 of 80" in once.stdout
    assert len(once.stdout.splitlines()) <= 29
    assert "\x1b" not in once.stdout
    piped = CliRunner().invoke(app, ["watch", str(folder.path)])
    assert piped.exit_code == 0
    assert "output is not a terminal; printing one snapshot (as with --once)" in piped.stderr
    assert "step 2 of 80" in piped.stdout
    nothing = CliRunner().invoke(app, ["watch", str(tmp_path / "nothing"), "--once"])
    assert nothing.exit_code == 2
    assert "is not a run folder" in nothing.stderr


def test_a_folder_with_several_runs_lists_them_and_one_with_a_single_run_is_that_run(make_folder, tmp_path: Path):
    for name in ("dapo", "vgpo"):
        log(make_folder(f"quickstart/{name}"), 1, 2)
    several = CliRunner().invoke(app, ["watch", str(tmp_path / "quickstart")])
    assert several.exit_code == 2
    assert several.stderr.splitlines()[1:] == [f"  {tmp_path}/quickstart/{name}" for name in ("dapo", "vgpo")]
    assert "quickstart holds 2 runs; name one of them:" in several.stderr
    log(make_folder("study/runs/default/vgpo/seed-0"), 1, 2, 3)
    single = CliRunner().invoke(app, ["watch", str(tmp_path / "study"), "--once"])
    assert "step 3 of 80" in single.stdout


@pytest.mark.parametrize("place", ["a" * 300, "a" * 300 + "/run"])
def test_a_path_that_no_file_system_takes_is_an_error(tmp_path: Path, place: str):
    failed = CliRunner().invoke(app, ["watch", str(tmp_path / place)])
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: ")
    assert "correct the path" in failed.stderr


def test_a_mistyped_folder_is_an_error_and_one_to_come_is_waited_for(tmp_path: Path):
    mistyped = CliRunner().invoke(app, ["watch", str(tmp_path / "rnus" / "vgpo")])
    assert mistyped.exit_code == 2
    assert f"there is no folder '{tmp_path}/rnus/vgpo'" in mistyped.stderr
    watch.follow(watched := WatchedRun(tmp_path / "to-come"), terminal(), every=0.5, pause=lambda _: end_of(watched))
    assert watched.over


def end_of(watched: WatchedRun) -> None:
    folder = watched.folder
    folder.images_path.mkdir(parents=True)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    end(folder)


def test_final_weights_are_named_and_a_run_that_has_them_and_its_mark_is_finished(make_folder):
    folder = make_folder(eval_data="test.parquet")
    log(folder, *range(1, 81))
    (folder.final_path).mkdir(parents=True)
    folder.write_finished(80, 2.0)
    watched = read(folder)
    assert watched.over
    assert "finished" in text_of(watched)
    assert "final weights in checkpoints/final" in text_of(watched)
    assert "no checkpoint yet" not in text_of(watched)


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_that_lacks_characters_gets_others(make_folder, encoding: str):
    folder = make_folder("läuft")
    log(folder, *range(1, 61))
    folder.write_rollouts(*handed_over([rollout(60, answer="字")]))
    words = ["-m", "vgpo.cli", "watch", str(folder.path), "--once"]
    given = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1", "COLUMNS": "100", "LINES": "40"}
    done = subprocess.run([sys.executable, *words], capture_output=True, env={**os.environ, **given}, check=True)
    shown, expected = done.stdout.decode(encoding), text_of(read(folder), 100, 39, time.time())
    assert len(shown.splitlines()) == len(expected.splitlines())
    name, dot = {"ascii": ("l?uft", "-"), "latin-1": ("läuft", "·"), "utf-8": ("läuft", "·")}[encoding]
    assert f"{name} {dot} Qwen2.5-VL-7B {dot} vgpo" in shown
    if encoding == "utf-8":
        assert "expected 字" in shown
    else:
        assert "############...." in shown
        assert "expected ?" in shown
        assert re.search(r"0\.75 .*\* ", shown)
        # The reference answer, and two that end sentences.
        assert shown.count("?") == 3 + (name == "l?uft")


def terminal(**size: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, **{"width": 80, "height": 24, **size})


def test_it_is_drawn_anew_until_the_run_is_over(make_folder, tmp_path: Path):
    folder = RunFolder(tmp_path / "to-come")
    console, pauses = terminal(), []

    def go_on(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            make_folder("to-come")
            log(folder, 1, 2)
        elif len(pauses) == 2:
            end(folder)
        else:
            raise AssertionError("the run is over, and it is still drawn")

    watch.follow(WatchedRun(folder.path), console, every=0.5, pause=go_on)
    shown = console.file.getvalue()
    places = [shown.index(part) for part in ("no run in", "step 2 of 80", "finished")]
    assert places == sorted(places)
    assert len(pauses) == 2
    assert min(pauses) >= 0.5
    assert shown.count("\x1b[?1049h") == shown.count("\x1b[?1049l") == 1


def test_it_ends_when_the_terminal_is_gone(make_folder, monkeypatch: pytest.MonkeyPatch):
    def wait(seconds: float) -> None:
        raise AssertionError("nobody sees it, and it goes on")

    monkeypatch.setattr(watch, "output_is_lost", lambda: True)
    watch.follow(WatchedRun(make_folder().path), terminal(), every=2, pause=wait)


def test_a_slow_view_is_drawn_less_often(make_folder, monkeypatch: pytest.MonkeyPatch):
    clock, pauses = iter(range(0, 1000, 7)), []
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(clock)))

    def stop(seconds: float) -> None:
        pauses.append(seconds)
        raise RunFolderError("enough")

    with pytest.raises(RunFolderError, match="enough"):
        watch.follow(WatchedRun(make_folder().path), terminal(), every=2, pause=stop)
    assert pauses == [7 / 0.02]


def test_ctrl_c_gives_the_terminal_back(make_folder, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    log(folder, 1, 2)
    console = terminal()
    monkeypatch.setattr(watch, "Console", lambda **options: console)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.follow, "__kwdefaults__", {"pause": interrupt})
    watch.run(folder.path, every=2, once=False)
    shown = console.file.getvalue()
    after = shown[shown.index("\x1b[?1049l") :]
    assert "\x1b[?25h" in shown[shown.index("\x1b[?25l") :]
    assert "step 2 of 80" in after


def test_curve_of_a_straight_line():
    # Eight dots across and eight down: the diagonal.
    assert characters.curve([0, 7], [0, 7], width=4, height=2, low=0, high=7) == ["⠀⠀⡠⠊", "⡠⠊⠀⠀"]
    assert characters.curve([5], [1.0], width=3, height=1, low=1, high=1) == ["⠄⠀⠀"]
    # A jump is drawn as one upright line.
    assert characters.curve([0, 1], [0, 1], width=1, height=1, low=0, high=1) == ["⡸"]
    # Nothing on the way to a gap, nor from it; what stands alone is a dot.
    assert characters.curve([0, 2, 4, 7], [0, None, 0, 0], width=4, height=1, low=0, high=1) == ["⡀⠀⣀⣀"]


def test_a_run_with_steps_that_are_not_finite(make_folder):
    folder = make_folder()
    log(folder, 1, 2)
    log(folder, 3, entropy=None, grad_norm=None)
    assert re.search(r"Entropy +nan\b", text_of(read(folder)))
    empty = make_folder("empty")
    log(empty, 1, 2, 3, entropy=None)
    shown = text_of(read(empty))
    assert "Entropy" not in shown
    assert "Response length" in shown


def naive_columns(xs: list[float], ys: list[float], count: int) -> list[float]:
    """With NaN for a gap."""
    places = [round((count - 1) * (x - xs[0]) / (xs[-1] - xs[0])) for x in xs]
    there = {p: [y for q, y in zip(places, ys, strict=True) if q == p and not math.isnan(y)] for p in places}
    means = {p: sum(some) / len(some) if some else math.nan for p, some in there.items()}
    values = []
    for column in range(count):
        left, right = max(p for p in means if p <= column), min(p for p in means if p >= column)
        part = (column - left) / (right - left) if right > left else 0
        values.append((1 - part) * means[left] + part * means[right])
    return values


@pytest.mark.parametrize("xs", [[1, 2], [1, 2, 30], list(range(100)), [0, 1, 1.5, 40, 80, 81]])
@pytest.mark.parametrize("gaps", [[], [1], [0], [1, 2, 3], [-1, 2]])
def test_columns_against_the_naive_form(xs: list[float], gaps: list[int]):
    ys: list = [(7 * x) % 5 - 2 for x in xs]
    for gap in gaps:
        ys[gap % len(xs)] = None
    for count in (2, 3, 17, 64):
        values = [math.nan if y is None else y for y in characters.columns(xs, ys, count)]
        expected = naive_columns(xs, [math.nan if y is None else y for y in ys], count)
        assert values == pytest.approx(expected, nan_ok=True)


def test_bars():
    assert characters.bars([0, 1, None, 7], 10) == "▁▂·█"
    assert characters.bars([1, 1, 5, 5, 3, None], 3) == "▁█▅"
    assert characters.bars([0.5], 5) == "▅"
    assert characters.bars([None, None], 5) == "··"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.53625, "0.536"),
        (19.5533, "19.6"),
        (999.4, "999"),
        (999.7, "1,000"),
        (1234.5, "1,234"),
        (123_456.0, "123,456"),
        (-123_456.0, "-1e+05"),
        (1e9, "1.0e+09"),
        (-0.00123, "-0.0012"),
        (-0.00001, "-1e-05"),
    ],
)
def test_short_numbers(value: float, text: str):
    assert characters.short(value) == text


def test_short_numbers_of_every_size():
    draw = random.Random(0)
    for exponent in range(-300, 300):
        for digits in (1.0, 9.996, 9.5, draw.uniform(1, 10)):
            for sign in (1, -1):
                value = sign * digits * 10.0**exponent
                text = characters.short(value)
                assert len(text) <= 7
                # One digit is left of the longest, three of what metrics mostly are.
                precision = 0.0051 if 0.001 <= value < 1e5 else 0.34
                assert float(text.replace(",", "")) == pytest.approx(value, rel=precision)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.25, "3.2 s"), (-1, "0.0 s"), (45, "45 s"), (720, "12 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str):
    assert characters.duration(seconds) == text
