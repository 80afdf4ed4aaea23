"""How the costs of a step grow with group size, text, response and image: slopes on log-log axes.

`python benchmarks/step.py --growth` measures VGPO and GRPO over a ladder of sizes of each, the other three at a middle
point, and fits cost = c * size ** slope by least squares to the median costs. Slopes of doubling sizes show how much a
longer prompt or a larger group costs: 0 if nothing, 1 if the cost grows as the size does.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from benchmarks.models import TEMPLATE_TOKENS, Case
from benchmarks.turns import Contender
from rich.table import Table

VARIABLES = {"group": "rollouts (G)", "text": "text tokens", "response": "response tokens", "side": "image tokens"}
COSTS = ("update", "generation", "memory")
# 97.5 % quantiles of Student's t by degrees of freedom: a ladder of n sizes leaves n - 2.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}
LEGEND = (
    "Slopes of log cost over log size with 95 % intervals; range: the cost at the largest size over that at the "
    "smallest. update: an optimizer step without generation; memory: peak of what a round allocates."
)

Costs = dict[str, dict[str, float]]  # by trainer, then by name of the cost


@dataclass(frozen=True)
class Point:
    """Sizes of a step: rollouts of a group, tokens of text and of a response, and visual tokens on an image's side."""

    group: int
    text: int
    response: int
    side: int

    @property
    def case(self) -> Case:
        return Case(prompt=self.text + self.side**2, side=self.side, response=self.response)

    def sizes(self) -> dict[str, int]:
        """By variable; an image's is its number of tokens."""
        return {**dict(zip(VARIABLES, astuple(self), strict=True)), "side": self.side**2}

    def __str__(self) -> str:
        return ", ".join(f"{size} {VARIABLES[name]}" for name, size in self.sizes().items())


@dataclass(frozen=True)
class Ladders:
    """What is measured: a middle point, and sizes of each variable at which the others are as there."""

    middle: Point
    steps: Mapping[str, Sequence[int]]

    def along(self, variable: str) -> list[Point]:
        return [replace(self.middle, **{variable: size}) for size in self.steps[variable]]

    def points(self) -> list[Point]:
        """All, each once."""
        return list(dict.fromkeys(point for variable in self.steps for point in self.along(variable)))


LADDERS = {
    "cpu": Ladders(
        Point(group=8, text=64, response=64, side=8),
        {"group": (2, 4, 8, 16, 32), "text": (16, 32, 64, 128, 256), "response": (16, 32, 64, 128, 256),
         "side": (4, 6, 8, 12, 16)},
    ),
    "cuda": Ladders(
        Point(group=8, text=256, response=256, side=16),
        {"group": (2, 4, 8, 16, 32), "text": (64, 128, 256, 512, 1024), "response": (64, 128, 256, 512, 1024),
         "side": (8, 12, 16, 24, 32)},
    ),
}  # fmt: skip
TINY = Ladders(
    Point(group=2, text=TEMPLATE_TOKENS + 4, response=4, side=3),
    {"group": (2, 3, 4), "text": (TEMPLATE_TOKENS + 2, TEMPLATE_TOKENS + 4, TEMPLATE_TOKENS + 8),
     "response": (2, 4, 8), "side": (2, 3, 4)},
)  # fmt: skip


@dataclass(frozen=True)
class Slope:
    """An exponent and its 95 % interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:5.2f} [{self.low:5.2f}, {self.high:5.2f}]"


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Slope:
    """The exponent b of cost = c * size ** b, by least squares on log-log axes.

    Its standard error is sqrt(SSR / (n - 2) / Sxx), and its interval b +- t(0.975, n - 2) of them: n is 3 or more.
    """
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    x_mean, y_mean = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - x_mean) ** 2 for a in x)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    residuals = sum((b - y_mean - slope * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
    freedom = len(x) - 2
    half = T_QUANTILES[freedom] * math.sqrt(residuals / freedom / spread)
    return Slope(slope, slope - half, slope + half)


def costs_of(contender: Contender) -> dict[str, float]:
    """Median seconds of an optimizer step's phases, and peak bytes."""
    seconds = {phase: statistics.median(values) for phase, values in contender.seconds.items()}
    return {**seconds, "memory": contender.peak_bytes}


def slopes_of(ladders: Ladders, costs: Mapping[Point, Costs]) -> list[dict[str, Any]]:
    """A row for each variable and cost: its sizes, and by trainer the values, the slope, and the range."""
    rows = []
    for variable, cost in itertools.product(ladders.steps, COSTS):
        points = ladders.along(variable)
        sizes = [point.sizes()[variable] for point in points]
        row: dict[str, Any] = {"variable": VARIABLES[variable], "sizes": sizes, "cost": cost}
        for trainer in costs[points[0]]:
            values = [costs[point][trainer][cost] for point in points]
            row[trainer] = {"values": values, **asdict(fit(sizes, values)), "range": values[-1] / values[0]}
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Slopes with their intervals, and ranges, of VGPO and GRPO."""
    columns = [f"{trainer} {what}" for trainer in ("VGPO", "GRPO") for what in ("slope [95 %]", "range")]
    table = Table("variable", "sizes", "cost", *columns, box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        first = row["cost"] == COSTS[0]
        sizes = ", ".join(map(str, row["sizes"]))
        cells = []
        for trainer in ("VGPO", "GRPO"):
            found = row[trainer]
            cells += [str(Slope(found["slope"], found["low"], found["high"])), f"{found['range']:.1f}"]
        table.add_row(row["variable"] if first else "", sizes if first else "", row["cost"], *cells)
    return table


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """By variable and cost, the slopes of VGPO and GRPO."""
    lines: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        slopes = [round(row[trainer]["slope"], 3) for trainer in ("VGPO", "GRPO")]
        lines.setdefault(row["variable"], {})[row["cost"]] = slopes
    return lines
