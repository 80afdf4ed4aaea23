"""What the runs of a study do on the way: the figures of docs/results.md that are in no table of `vgpo compare`.

`python studies/dynamics.py studies/results/adaptive_forgetting` prints, from `curves.csv` and `runs.csv`, by method

1. training accuracy and entropy in steps 1 to 10, 11 to 20 and 31 to 40, means over seeds;
2. the difference of accuracy in steps 1 to 10, and on each further held-out set, from dapo with the same seed.

`--runs runs/adaptive_forgetting/runs/forgetting` adds, from the metrics in the run folders,

3. sums of |A^V| over those of |A|, strength, compensation and text-only accuracy, means over seeds and steps;
4. the difference of accuracy over the last four steps at equal tokens: at the number of tokens that the shorter of a
   pair has drawn.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vgpo.metric_names import (
    ADAPTIVE_COMPENSATION,
    ADAPTIVE_STRENGTH,
    ADAPTIVE_TEXT_ONLY_ACCURACY,
    SAMPLING_ACCURACY_DRAWN,
    SHAPING_NEGATIVE_MASS,
    SHAPING_POSITIVE_MASS,
)
from vgpo.study.statistics import paired_difference

BASE = "dapo"
RANGES = ((1, 10), (11, 20), (31, 40))
LAST_STEPS = 4
LOGGED = (
    SHAPING_POSITIVE_MASS, SHAPING_NEGATIVE_MASS, ADAPTIVE_STRENGTH, ADAPTIVE_COMPENSATION,
    ADAPTIVE_TEXT_ONLY_ACCURACY,
)  # fmt: skip
BySeed = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with curves.csv and runs.csv")
    parser.add_argument("--runs", type=Path, help="folder of a setting, with METHOD/seed-N/metrics.jsonl")
    arguments = parser.parse_args()
    steps, runs = rows_of(arguments.results / "curves.csv"), rows_of(arguments.results / "runs.csv")
    print(phases(steps), differences(steps, runs), sep="\n\n")
    if arguments.runs:
        lines = metrics_of(arguments.runs)
        print("", logged(lines), equal_tokens(lines), sep="\n\n")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] != "start"]


def in_steps(steps: Sequence[Mapping[str, str]], column: str, first: int, last: int) -> dict[str, BySeed]:
    """By method and seed, the mean of a column over steps `first` to `last`."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in steps:
        if first <= int(row["step"]) <= last and row[column]:
            found[row["method"]][int(row["seed"])].append(float(row[column]))
    return {method: {seed: fmean(values) for seed, values in seeds.items()} for method, seeds in found.items()}


def phases(steps: Sequence[Mapping[str, str]]) -> str:
    columns = {
        f"{column}, {first} to {last}": in_steps(steps, column, first, last)
        for column in ("accuracy", "entropy")
        for first, last in RANGES
    }
    methods = next(iter(columns.values()))
    return table(
        ["method", *columns],
        [[method, *(f"{fmean(one[method].values()):.3f}" for one in columns.values())] for method in methods],
    )


def differences(steps: Sequence[Mapping[str, str]], runs: Sequence[Mapping[str, str]]) -> str:
    """From the base, in points."""
    columns = {"accuracy, 1 to 10": in_steps(steps, "accuracy", 1, 10)}
    for name in runs[0]:
        if name.startswith("accuracy_on_"):
            of_method: dict[str, BySeed] = defaultdict(dict)
            for row in runs:
                of_method[row["method"]][int(row["seed"])] = float(row[name])
            columns[name.removeprefix("accuracy_on_")] = of_method
    methods = [method for method in next(iter(columns.values())) if method != BASE]
    return table(
        ["method less dapo, points", *columns],
        [[method, *(points(one[method], one[BASE]) for one in columns.values())] for method in methods],
    )


def metrics_of(folder: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """By method and seed, the metrics lines of steps."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for path in sorted(folder.glob("*/seed-*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [line for line in lines if line.get(SAMPLING_ACCURACY_DRAWN) is not None]
        found[path.parts[-3]][int(path.parts[-2].removeprefix("seed-"))] = kept
    return found


def logged(lines: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> str:
    rows = []
    for method, seeds in lines.items():
        every = [line for of_seed in seeds.values() for line in of_seed]
        rows.append([method, *(mean_of(every, name) for name in LOGGED)])
    return table(["method", *LOGGED], rows)


def mean_of(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Over lines, and over strata where the metric has some."""
    values = [value for line in lines for name, value in line.items() if f"{name}/".startswith(f"{metric}/")]
    return f"{fmean(values):.3f}" if values else "–"


def equal_tokens(lines: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> str:
    rows = []
    for method, seeds in lines.items():
        own: BySeed = {}
        base: BySeed = {}
        for seed in seeds.keys() & lines[BASE].keys():
            limit = min(run[-1]["num_tokens"] for run in (seeds[seed], lines[BASE][seed]))
            own[seed], base[seed] = (last_accuracy(run, limit) for run in (seeds[seed], lines[BASE][seed]))
        rows += [] if method == BASE else [[method, points(own, base)]]
    return table(["method less dapo, points", "last steps at equal tokens"], rows)


def last_accuracy(run: Sequence[Mapping[str, Any]], limit: float) -> float:
    """Mean over the last steps within a number of tokens."""
    return fmean([line[SAMPLING_ACCURACY_DRAWN] for line in run if line["num_tokens"] <= limit][-LAST_STEPS:])


def points(values: BySeed, base: BySeed) -> str:
    found = paired_difference(values, base)
    if found is None or found.low is None or found.high is None:
        return "–"
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}], p {found.p_value:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
