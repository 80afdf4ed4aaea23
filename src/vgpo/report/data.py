"""The data of a report: everything the page shows, as one JSON-able dict, and nothing else."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vgpo.metric_names import (
    ADAPTIVE_STRENGTH,
    ALARM_PREFIX,
    EVAL_SUITE_PREFIX,
    FOCUS_GATE_RATE,
    FOCUS_LATE_EARLY_RATIO,
    FOCUS_MEAN,
    SAMPLING_GROUPS_DRAWN,
    SAMPLING_GROUPS_KEPT,
    SAMPLING_LOG_PROB_GAP,
)
from vgpo.report.held_out import HeldOut, read_held_out
from vgpo.report.rollouts import RolloutSummary, fit_rollouts, summarise_rollouts
from vgpo.report.verdict import report_verdict
from vgpo.run.accuracy import accuracy_reward_of
from vgpo.run.folder import RunFolder
from vgpo.run.storage import RunFolderError

VERSION = 1
MAX_RUNS = 8  # more lines than that cannot be told apart
MAX_POINTS = 400  # per line; longer ones are averaged
ROLLOUT_BYTES = 3_500_000  # of all runs together
# Settings that differ between any two runs, or follow from others, and explain nothing.
UNEXPLAINING_SETTINGS = ("run_dir", "output_dir", "run_name", "logging_dir", "report_to", "accuracy_reward")

SUITE_ACCURACY = re.compile(re.escape(EVAL_SUITE_PREFIX) + r"[a-z0-9_]+/accuracy")
SUITE_CHART = "suite_"  # the id of a chart; the name of a benchmark follows
# What `with_accuracy` adds to a metrics line.
ACCURACY = "accuracy reward"
EVAL_ACCURACY = "accuracy reward of evaluation"


@dataclass(frozen=True)
class Chart:
    """A chart of the page. `read` takes a metrics line and gives the value at that step, None if none was logged."""

    id: str
    title: str
    caption: str
    unit: str
    digits: int
    from_zero: bool
    read: Callable[[Mapping[str, Any]], float | None]


def metric(*keys: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Read the first of `keys` that a metrics line holds."""
    return lambda line: next((line[key] for key in keys if line.get(key) is not None), None)


def mean_strength(line: Mapping[str, Any]) -> float | None:
    """Strength of the adaptive shaping, the mean over the strata where the data has some."""
    names = [name for name in line if name == ADAPTIVE_STRENGTH or name.startswith(f"{ADAPTIVE_STRENGTH}/")]
    values = [line[name] for name in names if line[name] is not None]
    return sum(values) / len(values) if values else None


def reward_names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The reward functions of a run, in order, by the first line that has their means."""
    for line in lines:
        keys = [key for key in line if key.startswith("rewards/") and key.endswith("/mean")]
        if keys:
            return [key.removeprefix("rewards/").removesuffix("/mean") for key in keys]
    return []


def metrics_of(folder: RunFolder, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics lines of a run with these settings, each step once; see `with_accuracy`."""
    return with_accuracy(drop_abandoned_steps(folder.read_metrics()), config)


def with_accuracy(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics lines of a run, with the means of its accuracy reward under `ACCURACY` and `EVAL_ACCURACY` too."""
    name = accuracy_reward_of(config, reward_names(lines))
    keys = {ACCURACY: f"rewards/{name}/mean", EVAL_ACCURACY: f"eval_rewards/{name}/mean"}
    return [{**line, **{name: line[key] for name, key in keys.items() if key in line}} for line in lines]


def share_of_groups_kept(line: Mapping[str, Any]) -> float | None:
    kept, drawn = line.get(SAMPLING_GROUPS_KEPT), line.get(SAMPLING_GROUPS_DRAWN)
    return kept / drawn if kept is not None and drawn else None


HELD_OUT_KEYS = ("eval_accuracy", "eval/accuracy", EVAL_ACCURACY)
CHARTS = (
    Chart(
        "held_out",
        "Held-out accuracy",
        "Questions never trained on.",
        "share of questions",
        3,
        True,
        metric(*HELD_OUT_KEYS),
    ),
    Chart(
        "accuracy",
        "Training accuracy",
        "Accuracy reward of a step's rollouts.",
        "share of rollouts",
        3,
        True,
        metric(ACCURACY),
    ),
    Chart("reward", "Reward", "Sum of all rewards, mean of a step's rollouts.", "reward", 3, True, metric("reward")),
    Chart("focus", "Focus", "Mean ρ over response tokens; ½ is no similarity.", "ρ", 3, False, metric(FOCUS_MEAN)),
    Chart(
        "late_early",
        "Late / early focus",
        "Visual accumulation, second half over first; 1 is even.",
        "ratio",
        3,
        False,
        metric(FOCUS_LATE_EARLY_RATIO),
    ),
    Chart("strength", "Strength", "λ of the adaptive shaping, mean over strata.", "λ", 3, False, mean_strength),
    Chart("gate", "Gate rate", "Share of tokens compensated.", "share of tokens", 3, False, metric(FOCUS_GATE_RATE)),
    Chart(
        "length",
        "Response length",
        "Mean over a step's rollouts.",
        "tokens",
        1,
        False,
        metric("completions/mean_length"),
    ),
    Chart("entropy", "Entropy", "Of the policy, mean per token.", "nats", 3, False, metric("entropy")),
    Chart(
        "groups",
        "Groups kept",
        "Share of drawn groups neither too easy nor too hard.",
        "share of groups",
        2,
        True,
        share_of_groups_kept,
    ),
    Chart(
        "log_prob_gap",
        "Log-probability gap",
        "Update against sampling, mean per token.",
        "nats",
        3,
        True,
        metric(SAMPLING_LOG_PROB_GAP),
    ),
    Chart("grad_norm", "Gradient norm", "Before it is clipped.", "L2 norm", 3, True, metric("grad_norm")),
    Chart("step_time", "Step time", "Wall clock of one optimiser step.", "s", 2, True, metric("step_time")),
)


def suite_charts(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A chart for each benchmark that was evaluated during training."""
    keys = sorted({key for lines in metrics for line in lines for key in line if SUITE_ACCURACY.fullmatch(key)})
    tasks = {key: key.split("/")[1] for key in keys}
    caption = "Greedy accuracy on the rows that are asked."
    return [
        Chart(f"{SUITE_CHART}{task}", task, caption, "share of rows", 3, True, metric(key))
        for key, task in tasks.items()
    ]


def report_data(runs: Sequence[Path]) -> dict[str, Any]:
    """Collect what a report of these run folders shows.

    Returns:
        dict, JSON-able:
        `version`: 1, the version of this layout.
        `verdict`: the result in words: `headline`, `details` (sentences) and `tone` ("gain", "loss" or "open").
        `runs`: per run `name`, `model`, `seed`, `commit`, `dirty`, `started` (UTC, ISO 8601),
            `resumed_from` (the steps from which it was resumed), `machine`, `last_step`, `num_rollouts`,
            `alarms` (see `alarms_of`),
            `evaluation` (None, or `before` and `after`, each None or `accuracy`, `low`, `high` in [0, 1] with
            `num_questions` and `num_correct`; and `change`, None or `points`, `low`, `high` in [-1, 1]),
            `focus_curve` (None, or `first_step`, `last_step` and, for `correct` and `wrong`, `values`: mean rho
            in each tenth of the response, and `num_rollouts`),
            `rollouts` (the shown ones: see `vgpo.report.rollouts.rollout_entry`).
        `settings`: the settings in which the runs differ: `name` and `values`, one text per run.
        `charts`: `id`, `title`, `caption`, `unit`, `digits`, `from_zero` and `series`, each `run` (index),
            `steps`, `values` (None where what was logged is not finite) and `averaged` (logged steps per point: the
            mean of what is finite, at the step in their middle). Only charts that have a value.
        `images`: name -> None (no longer stored) or `uri` (data URI), `width`, `height` in pixels.
        `live`: None, or of a page that will be drawn again, because its run goes on: `drawn` (UTC, ISO 8601) and
            `every` (seconds until then).

    Raises:
        RunFolderError: no run, a run given twice, more than 8; a folder without a run or with a broken file.
    """
    check_runs(runs)
    folders = [RunFolder.open(path) for path in runs]
    return collect(folders, [summarise_rollouts(folder.read_rollouts()) for folder in folders])


def collect(folders: Sequence[RunFolder], summaries: Sequence[RolloutSummary]) -> dict[str, Any]:
    """`report_data` of runs whose rollouts have been read already."""
    configs = [folder.read_config() for folder in folders]
    metrics = [metrics_of(folder, config) for folder, config in zip(folders, configs, strict=True)]
    images: dict[str, Any] = {}
    budget = ROLLOUT_BYTES // len(folders)
    names = distinct_names([folder.path for folder in folders])
    held_out = [read_held_out(folder) for folder in folders]
    runs = [
        describe_run(folder, name, config, lines, summary, answers, images, budget)
        for folder, name, config, lines, summary, answers in zip(
            folders, names, configs, metrics, summaries, held_out, strict=True
        )
    ]
    charts = draw_charts(metrics)
    return {
        "version": VERSION,
        "verdict": asdict(report_verdict(runs, held_out, charts)),
        "runs": runs,
        "settings": differing_settings(configs),
        "charts": charts,
        "images": images,
        "live": None,
    }


def check_runs(runs: Sequence[Path]) -> None:
    if not runs:
        raise RunFolderError("found no run to report on, expected at least one run folder")
    if len(runs) > MAX_RUNS:
        raise RunFolderError(f"found {len(runs)} runs, expected at most {MAX_RUNS}; write several reports")
    resolved = [Path(run).resolve() for run in runs]
    twice = [str(path) for path in resolved if resolved.count(path) > 1]
    if twice:
        raise RunFolderError(f"{twice[0]} was given twice; name each run folder once")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the folder names, with the parent's name before them where two are the same."""
    resolved = [path.resolve() for path in paths]
    if len({path.name for path in resolved}) == len(resolved):
        return [path.name for path in resolved]
    return [f"{path.parent.name}/{path.name}" for path in resolved]


def describe_run(
    folder: RunFolder,
    name: str,
    config: Mapping[str, Any],
    lines: list[dict[str, Any]],
    summary: RolloutSummary,
    held_out: HeldOut | None,
    images: dict[str, Any],
    budget: int,
) -> dict[str, Any]:
    environment = folder.read_environment()
    settings = flatten(config)
    model_keys = [key for key in settings if key.split(".")[-1] in ("model_name_or_path", "model")]
    devices = environment.devices
    machine = f"{len(devices)} × {devices[0]}" if devices else f"{environment.cpu_count} CPU cores"
    return {
        "name": name,
        "model": settings[model_keys[0]] if model_keys else None,
        "seed": environment.seed,
        "commit": environment.commit,
        "dirty": environment.dirty,
        "started": environment.started,
        "resumed_from": [resumed.step for resumed in folder.read_resumes()],
        "machine": machine,
        "last_step": max((line["step"] for line in lines), default=0),
        "num_rollouts": summary.num_rollouts,
        "alarms": alarms_of(lines),
        "evaluation": held_out and held_out.describe(),
        "focus_curve": summary.focus_curves(),
        "rollouts": fit_rollouts(folder.path, summary, images, budget),
    }


def alarms_of(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the alarms that were logged: `name`, `num_lines`, and the `first_step` and `last_step` of these lines."""
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(ALARM_PREFIX))
    steps = {key: [line["step"] for line in lines if line.get(key)] for key in keys}
    return [
        {"name": key.removeprefix(ALARM_PREFIX), "num_lines": len(on), "first_step": on[0], "last_step": on[-1]}
        for key, on in steps.items()
        if on
    ]


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    flat = [flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    explaining = [name for name in names if name.split(".")[-1] not in UNEXPLAINING_SETTINGS]
    rows = [(name, [config.get(name, "—") for config in flat]) for name in explaining]
    return [{"name": name, "values": values} for name, values in rows if len(set(values)) > 1]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `{"a.b": "text"}` for nested settings."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def drop_abandoned_steps(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines without those that a run, resumed from an earlier step, left behind."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] > line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def draw_charts(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    logged = [[with_nan(line) for line in lines] for lines in metrics]
    for chart in [CHARTS[0], *suite_charts(metrics), *CHARTS[1:]]:
        series = [draw_line(chart, run, lines) for run, lines in enumerate(logged)]
        series = [line for line in series if any(value is not None for value in line["values"])]
        # With accuracy as the only reward the two are one chart.
        repeated = chart.id == "reward" and any(drawn["series"] == series for drawn in charts)
        if series and not repeated:
            shown = {name: getattr(chart, name) for name in ("id", "title", "caption", "unit", "digits")}
            charts.append({**shown, "from_zero": chart.from_zero, "series": series})
    return charts


def draw_line(chart: Chart, run: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the points of one run; more than 400 of them are averaged in stretches of equal length."""
    points = [(line["step"], value) for line in lines if (value := chart.read(line)) is not None]
    stretch = math.ceil(len(points) / MAX_POINTS) or 1
    stretches = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return {
        "run": run,
        "steps": [part[(len(part) - 1) // 2][0] for part in stretches],
        "values": [finite_mean([value for _, value in part]) for part in stretches],
        "averaged": stretch,
    }


def with_nan(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A metrics line as it was before null stood in it for what is not finite."""
    if None not in line.values():
        return line
    return {key: math.nan if value is None else value for key, value in line.items()}


def finite_mean(values: Sequence[float]) -> float | None:
    """With five digits; None if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return float(f"{sum(finite) / len(finite):.5g}") if finite else None
