"""A run of a study in a moment: `python stand_in_run.py FOLDER METHOD SEED` leaves the files of a real one."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

SEALED = (
    "recipe.yaml", "probe.json", "usage.json", "metrics.jsonl", "evaluation.json", "environment.json", "suite.yaml",
    "suite/scores.json",
)  # fmt: skip
# Held-out accuracy by method; a seed adds a hundredth.
LEVELS = {"start": 0.3, "dapo": 0.5, "vgpo": 0.6, "<script>alert(1)</script>": 0.4}


def scores(accuracy: float) -> dict[str, Any]:
    counts = {"num_questions": 100, "num_correct": round(100 * accuracy), "num_unanswered": 0, "num_truncated": 0}
    return {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, **counts}


def responses(number: int, ratio: float | None) -> dict[str, Any]:
    deciles = [None if ratio is None else 0.6 + 0.01 * i * ratio for i in range(10)]
    known = None if ratio is None else 20.0 + ratio
    return {
        "num_responses": number, "length": known, "entropy": ratio and 0.2 * ratio, "focus": ratio and 0.6,
        "late_early_ratio": ratio, "deciles": deciles,
    }  # fmt: skip


def probe(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": {"true": scores(accuracy), "blank": scores(0.1), "other": scores(0.2)},
        "responses": {"all": responses(100, 0.9), "correct": responses(100, 0.95), "wrong": responses(0, None)},
        "temperature": 1.0,
        "seed": 0,
    }


def write_run(folder: Path, method: str, seed: int, *, steps: int = 20) -> None:
    """All files of a finished run. Training accuracy rises by a tenth of the held-out accuracy a step, up to it."""
    accuracy = LEVELS[method] + 0.01 * seed
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text("{}\n")
    (folder / "probe.json").write_text(json.dumps(probe(accuracy)))
    when = "before" if method == "start" else "after"
    (folder / "evaluation.json").write_text(json.dumps({when: {**scores(accuracy), "answers": []}}))
    if method != "start":
        lines = [
            {
                "step": step, "rewards/accuracy_reward/mean": 0.9, "completions/mean_length": 20.0 + step,
                "sampling/accuracy_drawn": accuracy * min(1.0, step / 10), "entropy": 0.1 * seed,
                "focus/late_early_ratio": 0.9, "step_time": 2.0 if method == "dapo" else 2.2,
            }
            for step in range(1, steps + 1)
        ]  # fmt: skip
        if method != "dapo":
            shaped = {"shaping/token_factor_spread": 0.1, "shaping/positive_mass": 1.1, "shaping/negative_mass": 0.9}
            lines = [{**line, **shaped, "num_tokens": 100.0 * line["step"]} for line in lines]
        whole = {"step": steps, "train_runtime": 60.0, "train_loss": 0.0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, whole]))
        usage = {"peak_memory_bytes": 1_000_000, "memory_of": "process", "jobs": 1}
        (folder / "usage.json").write_text(json.dumps(usage))
        (folder / "config.yaml").write_text("accuracy_reward: accuracy_reward\n")
        write_environment(folder, commit="0" * 40, dirty=False)
    if (folder / "suite.yaml").exists():
        write_suite_scores(folder / "suite", accuracy)
    files = {name: folder / name for name in SEALED}
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}
    (folder / "done.json").write_text(json.dumps({"files": digests}))


def write_suite_scores(folder: Path, accuracy: float) -> None:
    """An evaluation: We-Math as accurate as given, Counting a fifth less and on some rows only, and their average."""
    whole, partial = ({"standard_error": 0.01, "is_partial": is_partial} for is_partial in (False, True))
    tasks = [
        {"task": "wemath", "title": "We-Math", "accuracy": accuracy, **whole},
        {"task": "counting", "title": "SuperClevr Counting", "accuracy": accuracy - 0.2, **partial},
    ]
    averages = [{"name": "Overall", "accuracy": accuracy - 0.1, **partial, "standard_error": None}]
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text("{}")
    scores = {"protocol": "papo-greedy", "tasks": tasks, "averages": averages}
    (folder / "scores.json").write_text(json.dumps(scores))


def write_environment(folder: Path, *, commit: str, dirty: bool) -> None:
    machine = {"cpu_count": 2, "devices": [], "seed": 0, "started": "2026-01-01T00:00:00+00:00"}
    (folder / "environment.json").write_text(json.dumps({"commit": commit, "dirty": dirty, **machine}))


def wait_for_a_signal(folder: Path, *, step_takes: float) -> None:
    """As a run in training: it finishes its step when it is told to stop."""

    def leave(*_: object) -> None:
        (folder / "told").touch()
        time.sleep(step_takes)
        (folder / "saved").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    (folder / "config.yaml").write_text("{}\n")
    (folder / "training").touch()
    time.sleep(60)  # and no longer, should nobody tell it


def main(place: str, method: str, seed: str, *words: str) -> None:
    folder = Path(place)
    with (folder / "started").open("a") as started:
        started.write(f"on {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    if (folder.parents[3] / f"{method} fails").exists():
        sys.exit("line before\n\x1b[31mout of luck")
    if (folder.parents[3] / f"{method} waits").exists():
        wait_for_a_signal(folder, step_takes=0)
    if (folder.parents[3] / f"{method} takes its time").exists():
        wait_for_a_signal(folder, step_takes=60)
    write_run(folder, method, int(seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
