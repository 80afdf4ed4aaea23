"""What the runs of a study do on the way: the figures of docs/results.md that are in no table of `vgpo compare`.

`python studies/dynamics.py studies/results/adaptive_forgetting` prints, from `curves.csv` and
`runs.csv`, by setting and method

1. training accuracy and entropy in steps 1 to 10, 11 to 20 and 31 to 40, means over seeds;
2. the difference of accuracy in steps 1 to 10, and on each further held-out set, from dapo with the same seed;
3. sums of |A^V| over those of |A|, compensation, text-only accuracy and strength, means over seeds and steps, and the
   strength in the last tenth of a run;
4. the difference of accuracy over the last four steps at equal tokens: at the number of tokens that the shorter of a
   pair has drawn.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from vgpo.study.statistics import paired_difference

BASE = "dapo"
RANGES = ((1, 10), (11, 20), (31, 40))
LAST_STEPS = 4
LOGGED = ("positive_mass", "negative_mass", "compensation", "text_only_accuracy")
Row = Mapping[str, str]
BySeed = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with curves.csv and runs.csv")
    arguments = parser.parse_args()
    steps, runs = rows_of(arguments.results / "curves.csv"), rows_of(arguments.results / "runs.csv")
    for setting in dict.fromkeys(row["setting"] for row in steps):
        own_steps, own_runs = ([row for row in rows if row["setting"] == setting] for rows in (steps, runs))
        print(f"## {setting}", phases(own_steps), differences(own_steps, own_runs), sep="\n\n", end="\n\n")
        print(logged(own_steps), equal_tokens(own_steps), sep="\n\n", end="\n\n")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] != "start"]


def in_steps(steps: Sequence[Row], column: str, first: int, last: int) -> dict[str, BySeed]:
    """By method and seed, the mean of a column over steps `first` to `last`."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in steps:
        if first <= int(row["step"]) <= last and row.get(column):
            found[row["method"]][int(row["seed"])].append(float(row[column]))
    return {method: {seed: fmean(values) for seed, values in seeds.items()} for method, seeds in found.items()}


def phases(steps: Sequence[Row]) -> str:
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


def differences(steps: Sequence[Row], runs: Sequence[Row]) -> str:
    """From the base, in points."""
    columns = {"accuracy, 1 to 10": in_steps(steps, "accuracy", 1, 10)}
    for name in runs[0]:
        if name.startswith("accuracy_on_") and runs[0][name]:  # settings may have different held-out sets
            of_method: dict[str, BySeed] = defaultdict(dict)
            for row in runs:
                of_method[row["method"]][int(row["seed"])] = float(row[name])
            columns[name.removeprefix("accuracy_on_")] = of_method
    methods = [method for method in next(iter(columns.values())) if method != BASE]
    return table(
        ["method less dapo, points", *columns],
        [[method, *(points(one[method], one[BASE]) for one in columns.values())] for method in methods],
    )


def logged(steps: Sequence[Row]) -> str:
    strengths = [name for name in steps[0] if name.startswith("strength")]
    last = max(int(row["step"]) for row in steps)
    columns = {name: in_steps(steps, name, 1, last) for name in (*LOGGED, *strengths)}
    columns |= {f"{name}, last tenth": in_steps(steps, name, last - last // 10 + 1, last) for name in strengths}
    methods = dict.fromkeys(row["method"] for row in steps)
    return table(
        ["method", *columns],
        [[method, *(mean(one.get(method, {})) for one in columns.values())] for method in methods],
    )


def mean(values: BySeed) -> str:
    return f"{fmean(values.values()):.3f}" if values else "–"


def equal_tokens(steps: Sequence[Row]) -> str:
    runs: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in steps:
        if row.get("tokens"):
            runs[row["method"]][int(row["seed"])].append(row)
    rows = []
    for method, seeds in runs.items():
        own: BySeed = {}
        base: BySeed = {}
        for seed in seeds.keys() & runs[BASE].keys():
            pair = seeds[seed], runs[BASE][seed]
            limit = min(float(run[-1]["tokens"]) for run in pair)
            own[seed], base[seed] = (last_accuracy(run, limit) for run in pair)
        rows += [] if method == BASE else [[method, points(own, base)]]
    return table(["method less dapo, points", "last steps at equal tokens"], rows)


def last_accuracy(run: Sequence[Row], limit: float) -> float:
    """Mean over the last steps within a number of tokens."""
    return fmean([float(row["accuracy"]) for row in run if float(row["tokens"]) <= limit][-LAST_STEPS:])


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
