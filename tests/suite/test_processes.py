"""Evaluations in processes of their own: a killed one is resumed, and inspect-ai's own command does the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from rich.console import Console

from vgpo.evaluation.completions import Completion
from vgpo.recipe.policies import TransformersPolicy
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite

Make = Callable[..., SuiteRequest]


def complete_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.process
def test_a_killed_evaluation_asks_nothing_twice_and_loses_nothing(
    request_for: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(batch_size=1)
    words = ["eval", "toy", "--suite", "vgpo", "--tasks", "geometry3k,counting", "--data", str(folder)]
    words += ["--template", "plain", "--max-new-tokens", "96", "--batch-size", "1", "--out", str(request.out)]
    process = subprocess.Popen([sys.executable, "-m", "vgpo.cli", *words], stdout=subprocess.DEVNULL)
    answers = EvaluationFolder(request.out).answers_path("geometry3k")
    started = time.monotonic()
    while len(complete_lines(answers)) < 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = complete_lines(answers)

    asked = []
    complete = TransformersPolicy.complete

    def noted(self: TransformersPolicy, rows: list[Any], **options: Any) -> list[Completion]:
        asked.extend(rows)
        return complete(self, rows, **options)

    monkeypatch.setattr(TransformersPolicy, "complete", noted)
    scores = evaluate_suite(request, Console(quiet=True))
    assert [task.num_correct for task in scores.tasks] == [4, 4]
    assert len(asked) == 12 - len(kept)
    assert complete_lines(answers)[: len(kept)] == kept
    assert sorted(line["row"] for line in complete_lines(answers)) == list(range(6))


@pytest.mark.slow
def test_inspect_ais_command_runs_task_and_provider_by_their_names(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    words = ["eval", "vgpo/counting", "--model", "vgpo/toy", "--log-dir", str(logs), "--display", "none"]
    words += ["-T", f"data={folder / 'counting.parquet'}", "-T", "template=plain", "-M", "batch_size=4"]
    words += ["--max-tokens", "96", "--no-log-realtime"]
    script = "from inspect_ai._cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    (info,) = list_eval_logs(str(logs))
    log = read_eval_log(info.name)
    assert log.results is not None
    assert (log.eval.task_registry_name, log.eval.model) == ("vgpo/counting", "vgpo/toy")
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(4 / 6)


@pytest.mark.slow
def test_an_interrupt_ends_quietly_and_keeps_the_answers(request_for: Make, folder: Path) -> None:
    request = request_for(batch_size=1)
    words = ["eval", "toy", "--tasks", "counting", "--data", str(folder), "--template", "plain"]
    words += ["--max-new-tokens", "96", "--batch-size", "1", "--out", str(request.out)]
    process = subprocess.Popen([sys.executable, "-m", "vgpo.cli", *words], stderr=subprocess.PIPE, text=True)
    answers = EvaluationFolder(request.out).answers_path("counting")
    started = time.monotonic()
    while not complete_lines(answers):
        assert process.poll() is None
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert complete_lines(answers)
