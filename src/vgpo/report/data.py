"""The data of a report: everything the page shows, as one JSON-able dict, and nothing else."""

import re
from collections.abc import Iterable, Mapping, Sequence
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
from vgpo.report.lines import Read, draw_line, with_nan
from vgpo.report.metrics import other_metrics
from vgpo.report.rollouts import RolloutSummary, fit_rollouts, summarise_rollouts
from vgpo.report.settings import flatten, settings_table
from vgpo.report.verdict import report_verdict
from vgpo.run.accuracy import accuracy_reward_of
from vgpo.run.folder import RunFolder
from vgpo.run.storage import RunFolderError

VERSION = 1
MAX_RUNS = 8  # more lines than that are not distinguishable
ROLLOUT_BYTES = 3_500_000  # of all runs together
HELD_OUT_BYTES = 600_000  # the same

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
    read: Read


@dataclass(frozen=True)
class FirstOf:
    """Reads the first of `keys` that a metrics line holds."""

    keys: tuple[str, ...]

    def __call__(self, line: Mapping[str, Any]) -> float | None:
        return next((line[key] for key in self.keys if line.get(key) is not None), None)


def metric(*keys: str) -> Read:
    """Read the first of `keys` that a metrics line holds."""
    return FirstOf(keys)


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
    Chart("focus", "Focus", "Mean ρ over response tokens; ½ means no similarity.", "ρ", 3, False, metric(FOCUS_MEAN)),
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
    Chart("step_time", "Step time", "Wall clock of one optimizer step.", "s", 2, True, metric("step_time")),
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
            `held_out` (None, or its questions: see `vgpo.report.held_out.HeldOut.questions`),
            `focus_curve` (None, or `first_step`, `last_step` and, for `correct` and `wrong`, `values`: mean rho
            in each tenth of the response, and `num_rollouts`),
            `rollouts` (those of the shown groups, by step: see `vgpo.report.rollouts.rollout_entry`).
        `settings`: see `vgpo.report.settings.settings_table`.
        `charts`: `id`, `title`, `caption`, `unit`, `digits`, `from_zero` and `series`, each `run` (index),
            `steps`, `values` (None where what was logged is not finite) and `averaged` (logged steps per point: the
            mean of what is finite, at the step in their middle). Only charts that have a value.
        `metrics`: all others that were logged: see `vgpo.report.metrics.other_metrics`.
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
    names = distinct_names([folder.path for folder in folders])
    held_out = [read_held_out(folder) for folder in folders]
    runs = [
        describe_run(folder, name, config, lines, summary, answers, images, len(folders))
        for folder, name, config, lines, summary, answers in zip(
            folders, names, configs, metrics, summaries, held_out, strict=True
        )
    ]
    charts = draw_charts(metrics)
    environments = [folder.read_environment() for folder in folders]
    return {
        "version": VERSION,
        "verdict": asdict(report_verdict(runs, held_out, charts)),
        "runs": runs,
        "settings": settings_table(configs, [one.command for one in environments], environments[0].defaults),
        "charts": charts,
        "metrics": other_metrics(metrics, charted_metrics(charts, metrics)),
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
    num_runs: int,
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
        "held_out": held_out and held_out.questions(HELD_OUT_BYTES // num_runs),
        "focus_curve": summary.focus_curves(),
        "rollouts": fit_rollouts(folder.path, summary, images, ROLLOUT_BYTES // num_runs),
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


def drop_abandoned_steps(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines without those that a run, resumed from an earlier step, left behind."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] > line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def all_charts(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """The charts that a page may have, in their order."""
    return [CHARTS[0], *suite_charts(metrics), *CHARTS[1:]]


def charted_metrics(charts: Sequence[Mapping[str, Any]], metrics: Sequence[Sequence[Mapping[str, Any]]]) -> set[str]:
    """Names of the metrics that are in a chart as they were logged, and of those that `with_accuracy` adds."""
    drawn = {chart["id"] for chart in charts}
    reads = [chart.read for chart in all_charts(metrics) if chart.id in drawn]
    return {ACCURACY, EVAL_ACCURACY, *(key for read in reads if isinstance(read, FirstOf) for key in read.keys)}


def draw_charts(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    logged = [[with_nan(line) for line in lines] for lines in metrics]
    for chart in all_charts(metrics):
        series = [draw_line(chart.read, run, lines) for run, lines in enumerate(logged)]
        series = [line for line in series if any(value is not None for value in line["values"])]
        # With accuracy as the only reward the two are one chart.
        repeated = chart.id == "reward" and any(drawn["series"] == series for drawn in charts)
        if series and not repeated:
            shown = {name: getattr(chart, name) for name in ("id", "title", "caption", "unit", "digits")}
            charts.append({**shown, "from_zero": chart.from_zero, "series": series})
    return charts
