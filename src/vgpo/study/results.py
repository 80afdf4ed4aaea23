"""Results of a study: a flat row per run, and the content of its tables and page as one JSON-serialisable dict."""

import itertools
import math
import statistics as stdlib_statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vgpo.focus.statistics import NUM_DECILES
from vgpo.metric_names import (
    ADAPTIVE_COMPENSATION,
    ADAPTIVE_STRENGTH,
    ADAPTIVE_TEXT_ONLY_ACCURACY,
    FOCUS_LATE_EARLY_RATIO,
    SAMPLING_ACCURACY_DRAWN,
    SHAPING_NEGATIVE_MASS,
    SHAPING_POSITIVE_MASS,
    SHAPING_TOKEN_FACTOR_SPREAD,
)
from vgpo.report.data import ACCURACY, Chart, metric, metrics_of
from vgpo.run.storage import read_object
from vgpo.study.folder import StudyRun
from vgpo.study.statistics import (
    final_level,
    mean_curve,
    mean_over_seeds,
    paired_difference,
    paired_ratio,
    steps_to_reach,
)

VERSION = 1
INITIAL = "start"  # beside the methods: the model before training
Row = dict[str, Any]


def training_accuracy(line: Mapping[str, Any]) -> float | None:
    """Mean accuracy over all prompts drawn at a step; with dynamic sampling, before groups are left out."""
    drawn = line.get(SAMPLING_ACCURACY_DRAWN)
    return line.get(ACCURACY) if drawn is None else drawn


CURVES = (
    Chart("accuracy", "Training accuracy", "Over all prompts drawn at a step.", "", 3, False, training_accuracy),
    Chart("length", "Response length", "Mean of a step.", "tokens", 1, False, metric("completions/mean_length")),
    Chart("entropy", "Entropy", "Of the policy, mean per token.", "nats", 3, False, metric("entropy")),
    Chart(
        "late_early", "Late / early focus", "Last half over first; 1 is even.", "", 3, False,
        metric(FOCUS_LATE_EARLY_RATIO),
    ),
    Chart(
        "token_factor", "Token factor", "Mean distance from 1; 0 changes no token.", "", 3, True,
        metric(SHAPING_TOKEN_FACTOR_SPREAD),
    ),
)  # fmt: skip
# Step columns without a chart: effects and costs of a method, stored so that the run folders can be deleted.
STEP_COLUMNS = {
    "tokens": metric("num_tokens"),
    "positive_mass": metric(SHAPING_POSITIVE_MASS),
    "negative_mass": metric(SHAPING_NEGATIVE_MASS),
    "compensation": metric(ADAPTIVE_COMPENSATION),
    "text_only_accuracy": metric(ADAPTIVE_TEXT_ONLY_ACCURACY),
}
# Column -> name in `evaluation.json`.
EVALUATION_COLUMNS = {
    "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high", "num_questions": "num_questions",
}  # fmt: skip
# Columns that do not exist for the start model.
TRAINING_COLUMNS = (
    "steps", "training_accuracy", "mean_training_accuracy", "roughness", "tokens", "step_time", "cpu_seconds",
    "peak_memory_bytes", "memory_of", "jobs", "commit", "dirty",
)  # fmt: skip


@dataclass(frozen=True)
class GroundingColumn:
    """A column of the second table: `factor` times a column of the rows, with so many decimals, and what it is."""

    column: str
    heading: str
    digits: int
    factor: float
    about: str


SHARE = "Share of held-out questions answered correctly, greedily,"
RATIO = "Mean focus ρ of the last half of a response over that of its first half; sampled responses that are {}"
# Visual grounding: accuracy without the image, and focus along the response.
GROUNDING_COLUMNS = (
    GroundingColumn("accuracy_true", "true image, %", 1, 100, f"{SHARE} with its image"),
    GroundingColumn("accuracy_blank", "black image, %", 1, 100, f"{SHARE} with a black image of the same size"),
    GroundingColumn("accuracy_other", "another image, %", 1, 100, f"{SHARE} with the image of the next question"),
    GroundingColumn("late_early_correct", "late / early, correct", 3, 1, RATIO.format("correct")),
    GroundingColumn("late_early_wrong", "late / early, wrong", 3, 1, RATIO.format("wrong")),
    GroundingColumn("length", "length", 1, 1, "Tokens of a sampled response"),
    GroundingColumn("entropy", "entropy", 3, 1, "Entropy of the next token, in nats, mean over sampled responses"),
)


def grounding_columns(rows: Sequence[Row]) -> list[GroundingColumn]:
    """`GROUNDING_COLUMNS`, and one for each further held-out set of these rows."""
    prefix = "accuracy_on_"
    sets = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    further = [(column, column.removeprefix(prefix)) for column in sets]
    return [
        *GROUNDING_COLUMNS,
        *(GroundingColumn(column, f"{name}, %", 1, 100, f"{SHARE} of the set {name}") for column, name in further),
    ]


# How the figures of the two tables are computed.
NOTES = {
    "comparison": "Held-out: greedy answers after training. Brackets: 95 % bootstrap interval of the mean over seeds, "
    "rather too narrow with few of them. Difference: mean over seeds of the method’s held-out accuracy minus the "
    "base’s with the same seed, in points. Learning: the same difference of training accuracy (over all prompts "
    "drawn), averaged over all steps of a run. p: exact two-sided sign-flip test of the difference before it, not "
    "corrected for the number of methods. Steps: first step at which the running mean of training accuracy over a "
    "tenth of the run reaches the mean over seeds of the base’s at its end; mean over the runs that get there. Step "
    "time (median of a run), CPU time (of training and its evaluation), tokens (prompts and responses that were "
    "trained on), memory (peak) and roughness (of training accuracy, from step to step): ratio to the base with the "
    "same seed.",
    "looks": "Greedy accuracy with the true image, a black one of the same size, and the next question’s, over the "
    "same questions; a model that does not need the image keeps its accuracy without it. The other columns: one "
    "response to each held-out question, sampled at the temperature of training. Late / early: mean focus ρ of the "
    "last half of a response over that of its first half.",
}


@dataclass(frozen=True)
class RunKey:
    """A finished run: its key in the study, and its folder."""

    setting: str
    method: str
    seed: int
    path: Path

    @property
    def is_start(self) -> bool:
        return self.method == INITIAL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs that are compared, and their baseline.

    Attributes:
        name: Of the comparison.
        question: The question that it answers, a sentence, or None.
        base: The method that the others are compared with, one of `methods`.
        methods, seeds, settings: Names and numbers in the order in which they are shown.
    """

    name: str
    question: str | None
    base: str
    methods: list[str]
    seeds: list[int]
    settings: list[str]


@dataclass(frozen=True)
class Result:
    """A finished run: its row, and its metrics lines (none for the start model)."""

    row: Row
    lines: list[dict[str, Any]]

    def series(self, read: Callable[[Mapping[str, Any]], float | None]) -> dict[int, float]:
        """Step -> value, where there is one."""
        return {line["step"]: value for line in self.lines if (value := read(line)) is not None}


def read_result(place: RunKey) -> Result:
    """Read a finished run.

    Raises:
        RunFolderError: A file of it is broken; names it.
    """
    one = StudyRun(place.path)
    row: Row = {"setting": place.setting, "method": place.method, "seed": place.seed}
    evaluation = (one.folder.read_evaluation() or {})["before" if place.is_start else "after"]
    row |= {name: evaluation[key] for name, key in EVALUATION_COLUMNS.items()}
    row |= probe_columns(read_object(one.probe_path))
    if place.is_start:
        return Result({**row, **dict.fromkeys(TRAINING_COLUMNS)}, [])
    lines = [line for line in metrics_of(one.folder, one.folder.read_config()) if is_step(line)]
    usage, environment = read_object(one.usage_path), one.folder.read_environment()
    times = [line["step_time"] for line in lines if line.get("step_time") is not None]
    accuracies = [value for line in lines if (value := training_accuracy(line)) is not None]
    trained = {
        "steps": max((line["step"] for line in lines), default=0),
        "training_accuracy": final_level(accuracies),
        "mean_training_accuracy": stdlib_statistics.fmean(accuracies) if accuracies else None,
        "roughness": roughness(accuracies),
        "tokens": max((line["num_tokens"] for line in lines if line.get("num_tokens")), default=None),
        "step_time": stdlib_statistics.median(times) if times else None,
        "cpu_seconds": None,  # of runs of earlier versions
        **usage,
        "commit": environment.commit,
        "dirty": environment.dirty,
    }
    return Result({**row, **{name: trained[name] for name in TRAINING_COLUMNS}}, lines)


def is_step(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a step, and not the summary of a run."""
    return any(one.read(line) is not None for one in CURVES)


def probe_columns(found: Mapping[str, Any]) -> Row:
    """The flat columns of what `vgpo.evaluation.grounding.measure_grounding` returned."""
    responses = found["responses"]
    row: Row = {f"accuracy_{name}": scores and scores["accuracy"] for name, scores in found["accuracy"].items()}
    row |= {name: responses["all"][name] for name in ("length", "entropy", "focus")}
    row |= {f"accuracy_on_{name}": value for name, value in found.get("held_out_sets", {}).items()}
    row["late_early"] = responses["all"]["late_early_ratio"]
    for outcome in ("correct", "wrong"):
        part = responses[outcome]
        row[f"num_{outcome}"] = part["num_responses"]
        row[f"length_{outcome}"] = part["length"]
        row[f"late_early_{outcome}"] = part["late_early_ratio"]
        row |= {f"focus_{outcome}_{i + 1}": value for i, value in enumerate(part["deciles"])}
    return row


def study_data(places: Sequence[RunKey], comparisons: Sequence[Comparison], *, name: str) -> dict[str, Any]:
    """Collect what a study's tables and page show, from the runs that are done.

    Returns:
        dict, JSON-able:
        `version`, `name`, `rows` (a flat dict for each run), `curves` (one for each of its steps), `commits` (all that
        occur), `cautions` (sentences), and `comparisons`, for each the fields of a `Comparison`, of which `settings`
        is a list of dicts: `name`; `columns`, those of the second table as in `GroundingColumn`; `start`, the row of
        the start model or None; `target`, the base's final training accuracy; `missing`, methods with the seeds that
        are not done; `methods`, see `method_summary`; `charts`, as in `vgpo.report.report_data`, with `low` and `high`
        in each series and `run` a method's number.
    """
    results = {(place.setting, place.method, place.seed): read_result(place) for place in places}
    rows = [result.row for result in results.values()]
    return {
        "version": VERSION,
        "name": name,
        "comparisons": [
            {**asdict(one), "settings": [describe_setting(setting, results, one) for setting in one.settings]}
            for one in comparisons
        ],
        "commits": sorted({row["commit"] for row in rows if row["commit"]}),
        "cautions": cautions(rows),
        "rows": rows,
        "curves": [step for result in results.values() for step in curve_rows(result)],
    }


def cautions(rows: Sequence[Row]) -> list[str]:
    """Reasons why figures of these runs are hard to compare."""
    trained = [row for row in rows if row["method"] != INITIAL]
    found = []
    if len({row["commit"] for row in trained}) > 1:
        found.append(
            "The runs were made by different commits of the code; differences may be differences of the code."
        )
    if any(row["dirty"] for row in trained):
        found.append(
            "Some runs were made with changes to the code that are in no commit (code.diff in their folders)."
        )
    if len({row["memory_of"] for row in trained}) > 1:
        found.append("The runs were made on different devices; times and memory are compared on the same device only.")
    if any(row["jobs"] and row["jobs"] > 1 for row in trained):
        found.append("Runs shared the machine with others, so that step times are rough.")
    return found


def roughness(values: Sequence[float]) -> float | None:
    """Step-to-step noise of a curve: the root mean square of its differences, divided by the root of 2.

    It is the standard deviation of independent noise around a slow curve; None for fewer than two values.
    """
    changes = [after - before for before, after in itertools.pairwise(values)]
    return math.sqrt(stdlib_statistics.fmean(change**2 for change in changes) / 2) if changes else None


def curve_rows(result: Result) -> list[Row]:
    """Rows of the curves: a flat dict per step of a run."""
    place = {name: result.row[name] for name in ("setting", "method", "seed")}
    readers = {**{chart.id: chart.read for chart in CURVES}, **STEP_COLUMNS}
    return [
        {**place, "step": line["step"], **{name: read(line) for name, read in readers.items()}, **strengths(line)}
        for line in result.lines
    ]


def strengths(line: Mapping[str, Any]) -> Row:
    """Strength of an adaptive shaping: `strength`, or a `strength_STRATUM` for each stratum of the data."""
    names = [name for name in line if f"{name}/".startswith(f"{ADAPTIVE_STRENGTH}/")]
    return {name.replace(ADAPTIVE_STRENGTH, "strength", 1).replace("/", "_", 1): line[name] for name in names}


def describe_setting(
    setting: str, results: Mapping[tuple[str, str, int], Result], comparison: Comparison
) -> dict[str, Any]:
    """Results by (setting, method, seed)."""
    of_method = {
        method: {seed: found for seed in comparison.seeds if (found := results.get((setting, method, seed)))}
        for method in comparison.methods
    }
    base = of_method[comparison.base]
    start = results.get((setting, INITIAL, 0))
    levels = column(base, "training_accuracy")
    target = sum(levels.values()) / len(levels) if levels else None
    columns = grounding_columns([result.row for runs in of_method.values() for result in runs.values()])
    return {
        "name": setting,
        "columns": [asdict(one) for one in columns],
        "start": start and start.row,
        "target": target,
        "missing": [
            {"method": method, "seeds": missing}
            for method, runs in of_method.items()
            if (missing := [seed for seed in comparison.seeds if seed not in runs])
        ],
        "methods": [
            method_summary(method, number, runs, base, target, columns)
            for number, (method, runs) in enumerate(of_method.items())
            if runs
        ],
        "charts": [chart for one in CURVES if (chart := mean_chart(one, list(of_method.values())))],
    }


def steps_to_target(runs: Mapping[int, Result], target: float | None) -> list[int]:
    """The steps at which runs reach the target."""
    if target is None:
        return []
    found = [result.series(training_accuracy) for result in runs.values()]
    reached = [steps_to_reach(list(series), list(series.values()), target) for series in found]
    return [step for step in reached if step is not None]


def column(runs: Mapping[int, Result], name: str) -> dict[int, float]:
    """Seed -> a figure of the rows, where there is one."""
    return {seed: value for seed, result in runs.items() if (value := result.row.get(name)) is not None}


def method_summary(
    method: str,
    number: int,
    runs: Mapping[int, Result],
    base: Mapping[int, Result],
    target: float | None,
    columns: Sequence[GroundingColumn],
) -> dict[str, Any]:
    """The table row of a method.

    Returns:
        dict: `name`; `number`, its place in the comparison; `num_runs`; `accuracy`, held out, mean over seeds with its
        interval, and `points`, the same by seed; `difference` (None for the base), of held-out accuracy, and
        `learning`, of training accuracy averaged over all steps; `looks`, for each of `columns` the mean
        over seeds with its interval; `steps_to_base`: `mean` over the runs that reach the level, None if none does,
        and `num_reached`; `step_time`, `cpu_time`, `tokens`, `memory` and `roughness`, mean ratios to the base;
        `deciles`, for `correct` and `wrong` the mean focus in each tenth of a response, None where there is none.
    """
    is_base = runs is base
    steps = steps_to_target(runs, target)

    def difference(name: str) -> dict[str, Any] | None:
        return None if is_base else as_dict(paired_difference(column(runs, name), column(base, name)))

    return {
        "name": method,
        "number": number,
        "num_runs": len(runs),
        "accuracy": as_dict(mean_over_seeds(list(column(runs, "accuracy").values()))),
        "points": {str(seed): value for seed, value in column(runs, "accuracy").items()},
        "difference": difference("accuracy"),
        "learning": difference("mean_training_accuracy"),
        "looks": {one.column: as_dict(mean_over_seeds(list(column(runs, one.column).values()))) for one in columns},
        "steps_to_base": {
            "mean": sum(steps) / len(steps) if steps else None,
            "num_reached": len(steps),
        },
        "step_time": cost_ratio("step_time", runs, base),
        "cpu_time": cost_ratio("cpu_seconds", runs, base),
        "tokens": cost_ratio("tokens", runs, base),
        "memory": cost_ratio("peak_memory_bytes", runs, base),
        "roughness": cost_ratio("roughness", runs, base),
        "deciles": {outcome: mean_deciles(runs, outcome) for outcome in ("correct", "wrong")},
    }


def cost_ratio(name: str, runs: Mapping[int, Result], base: Mapping[int, Result]) -> dict[str, Any] | None:
    """Mean ratio to the base with the same seed, of pairs that were measured on the same device."""
    alike = {
        seed: result
        for seed, result in runs.items()
        if seed in base and result.row["memory_of"] == base[seed].row["memory_of"]
    }
    return as_dict(paired_ratio(column(alike, name), column(base, name)))


def as_dict(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def mean_deciles(runs: Mapping[int, Result], outcome: str) -> list[float | None]:
    tenths = [list(column(runs, f"focus_{outcome}_{i + 1}").values()) for i in range(NUM_DECILES)]
    return [sum(values) / len(values) if values else None for values in tenths]


def mean_chart(chart: Chart, methods: Sequence[Mapping[int, Result]]) -> dict[str, Any] | None:
    """Mean curves of all methods, None where no run has logged the figure."""
    series = []
    for number, runs in enumerate(methods):
        found = [points for result in runs.values() if (points := result.series(chart.read))]
        if curve := mean_curve(found):
            series.append({"run": number, "averaged": 1, **asdict(curve)})
    if not series:
        return None
    shown = {name: getattr(chart, name) for name in ("id", "title", "caption", "unit", "digits", "from_zero")}
    return {**shown, "series": series}
