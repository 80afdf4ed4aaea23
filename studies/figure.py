"""The figure of docs/results.md: differences from dapo with the same seed, by method and setting, as an SVG.

`python studies/figure.py docs/images/adaptive.svg studies/results/adaptive_{forgetting,mixed,controls}` draws, from
the `runs.csv` of each folder, the mean difference of held-out accuracy (upper row) and of training accuracy averaged
over the run (lower row) with its 95 % interval. A column of panels is a setting; its axis is in points.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vgpo.study.results import INITIAL
from vgpo.study.statistics import paired_difference

BASE = "dapo"
COLUMNS = {"accuracy": "held-out accuracy", "mean_training_accuracy": "training accuracy over the run"}
LABELS, PANEL, LINE, HEAD, GAP = 130, 190, 22, 58, 30  # pixels
INK, FAINT, BLUE, ORANGE = "#1c1e21", "#c8ccd2", "#0b6aa2", "#c4500e"
BOLD = "font-weight='bold'"
BySeed = dict[int, float]
Values = Mapping[str, Mapping[str, BySeed]]  # by setting and method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="SVG file")
    parser.add_argument("results", type=Path, nargs="+", help="folders with runs.csv")
    arguments = parser.parse_args()
    rows = [row for folder in arguments.results for row in rows_of(folder / "runs.csv")]
    arguments.out.write_text(figure(rows), encoding="utf-8")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] != INITIAL]


def figure(rows: Sequence[Mapping[str, str]]) -> str:
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != BASE]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    height = HEAD + len(methods) * LINE + GAP
    width = LABELS + len(settings) * (PANEL + GAP)
    parts = [
        band(values_of(rows, column), name, methods, settings, top=number * height)
        for number, (column, name) in enumerate(COLUMNS.items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(COLUMNS)}" '
            f'font-family="sans-serif" font-size="12" fill="{INK}">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def values_of(rows: Sequence[Mapping[str, str]], column: str) -> Values:
    found: dict[str, dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["setting"]][row["method"]][int(row["seed"])] = float(row[column])
    return found


def band(values: Values, name: str, methods: Sequence[str], settings: Sequence[str], *, top: int) -> str:
    """A row of panels with one scale."""
    found = {
        (setting, method): intervals[method]
        for setting in settings
        for intervals in [differences(values[setting])]
        for method in methods
        if method in intervals
    }
    limit = max(max(abs(low), abs(high)) for _, low, high in found.values()) * 1.05
    parts = [text(0, top + 18, f"{name}, points from {BASE} (orange: 95 % interval clear of 0)", BOLD)]
    parts += [text(0, top + HEAD + i * LINE + 4, method) for i, method in enumerate(methods)]
    for column, setting in enumerate(settings):
        left = LABELS + column * (PANEL + GAP)
        own = [found.get((setting, method)) for method in methods]
        parts.append(panel(setting, own, left=left, top=top + HEAD, limit=limit))
    return "\n".join(parts)


def differences(methods: Mapping[str, BySeed]) -> dict[str, tuple[float, float, float]]:
    """By method, mean and interval in points."""
    found = {}
    for method, values in methods.items():
        change = None if method == BASE else paired_difference(values, methods[BASE])
        if change is not None and change.low is not None and change.high is not None:
            found[method] = (100 * change.mean, 100 * change.low, 100 * change.high)
    return found


def panel(
    setting: str, found: Sequence[tuple[float, float, float] | None], *, left: int, top: int, limit: float
) -> str:
    """Intervals of a setting; orange where the interval is clear of 0."""

    def x(value: float) -> str:
        return f"{left + PANEL / 2 * (1 + value / limit):.1f}"

    bottom = top + len(found) * LINE - LINE // 2
    parts = [text(left + PANEL // 2, top - 22, setting, f"text-anchor='middle' {BOLD}")]
    for tick in (-int(limit), 0, int(limit)):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top - 10}" y2="{bottom}" stroke="{FAINT}"/>')
        parts.append(text(float(x(tick)), bottom + 15, f"{tick:+d}" if tick else "0", "text-anchor='middle'"))
    for number, one in enumerate(found):
        if one is None:
            continue
        mean, low, high = one
        y, color = top + number * LINE, ORANGE if low > 0 or high < 0 else BLUE
        parts.append(f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(mean)}" cy="{y}" r="4" fill="{color}"/>')
    return "\n".join(parts)


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    main()
