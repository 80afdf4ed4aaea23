"""Draw what `benchmarks/step.py --json FILE` measured: time and memory of a step beside GRPO's, and the token floor.

python benchmarks/chart.py FILE docs/images/step.svg

There is a panel for each case. It shows VGPO by group size, or, of a FILE with several micro-batches, VGPO and GRPO by
micro-batch.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LEFT, TOP, HEIGHT = 44, 64, 190  # of the plots, in pixels
NARROWEST = 150  # a panel, for the text below it
PANEL_GAP = 30
LINE = 16  # pixels of a line of text below a plot
LETTER = 9  # pixels of a letter of the title, on the safe side
ONE = {"low": 1.0, "median": 1.0, "high": 1.0}


@dataclass(frozen=True)
class Pair:
    """Two bars: time with its quartiles and memory, of those of GRPO at the largest micro-batch; the floor, if any."""

    label: str
    trainer: str
    time: dict[str, float]
    memory: float
    floor: float | None


@dataclass(frozen=True)
class Layout:
    """What the axis shows, and how its bars lie.

    Args:
        title: of the chart, without its machine.
        bar: width of a bar in pixels.
        gap: between the bars of a pair.
        space: between pairs.
        columns: panels side by side.
        trainers: whether a line below the labels names trainers.
    """

    title: str
    bar: int
    gap: int
    space: int
    columns: int
    trainers: bool

    @property
    def pitch(self) -> int:
        return 2 * self.bar + self.gap + self.space

    @property
    def bottom(self) -> int:
        """Height of the text below a plot."""
        return (4 + self.trainers) * LINE


BY_GROUP = Layout("A step of VGPO without generation, GRPO = 1", 28, 4, 30, columns=9, trainers=False)
BY_MICRO_BATCH = Layout(
    "A step without generation, by rows of a micro-batch; GRPO at {largest} rows = 1", 26, 2, 10, columns=2,
    trainers=True,
)  # fmt: skip


def draw(record: dict[str, Any]) -> str:
    """An SVG: one panel for a case, in it one pair of bars for a group size or a micro-batch."""
    rows = record["results"]
    several = any(row["micro_batch"] != row["largest"] for row in rows)
    layout = BY_MICRO_BATCH if several else BY_GROUP
    cases = {case: [row for row in rows if row["case"] == case] for case in dict.fromkeys(row["case"] for row in rows)}
    pairs = {case: (pairs_by_micro_batch if several else pairs_by_group)(own) for case, own in cases.items()}
    highest = max(max(pair.time["high"], pair.memory, 1.0) for own in pairs.values() for pair in own)
    scale = HEIGHT / highest
    panels = [panel(layout, cases[case][0], own, scale) for case, own in pairs.items()]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    ticks = [
        {"value": f"{quarter / 4:g}", "y": HEIGHT - quarter / 4 * scale} for quarter in range(int(highest * 4) + 1)
    ]
    largest = " or ".join(str(size) for size in sorted({row["largest"] for row in rows}))
    title = f"{layout.title.format(largest=largest)} ({record['machine']})"
    width, height = place(panels, layout)
    width = max(width, LEFT + LETTER * len(title))
    return environment.get_template("chart.svg.jinja").render(
        panels=panels, ticks=ticks, left=LEFT, base=HEIGHT, one=HEIGHT - scale, line=LINE, width=width, height=height,
        title=title,
    )  # fmt: skip


def pairs_by_group(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """VGPO at each group size."""
    return [
        Pair(f"G = {row['group']}", "VGPO", row["ratios"]["time_ratio"], row["memory_ratio"], row["floor"])
        for row in rows
    ]


def pairs_by_micro_batch(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """VGPO at each micro-batch, and GRPO where it was measured."""
    own = [
        Pair(str(row["micro_batch"]), "VGPO", row["ratios"]["time_ratio"], row["memory_ratio"], row["floor"])
        for row in rows
    ]
    rivals = [
        Pair(str(row["micro_batch"]), "GRPO", row["ratios"]["rival_ratio"], row["rival_memory_ratio"], None)
        for row in rows
        if "rival_ratio" in row["ratios"]
    ]
    return [*own, Pair(str(rows[0]["largest"]), "GRPO", ONE, 1.0, None), *rivals]


def panel(layout: Layout, sizes: dict[str, Any], pairs: Sequence[Pair], scale: float) -> dict[str, Any]:
    """A case's bars, as seen from the upper left corner of its plot."""
    drawn = len(pairs) * layout.pitch
    width = max(drawn, NARROWEST)
    first = (width - drawn + layout.space) / 2
    places = [place_pair(pair, first + i * layout.pitch, layout, scale) for i, pair in enumerate(pairs)]
    centres: dict[str, list[float]] = {}
    for pair, own in zip(pairs, places, strict=True):
        centres.setdefault(pair.trainer, []).append(own["centre"])
    return {
        "case": sizes["case"].replace("_", "-"),
        "sizes": f"prompt {sizes['prompt']:.0f}, response {sizes['response']}",
        "width": width,
        "pairs": places,
        "trainers": [{"name": name, "centre": (own[0] + own[-1]) / 2} for name, own in centres.items()]
        if layout.trainers
        else [],
    }


def place_pair(pair: Pair, left: float, layout: Layout, scale: float) -> dict[str, Any]:
    """Places of two bars, of the quartiles of the first, and of the floor across both."""
    right = left + layout.bar + layout.gap
    return {
        "label": pair.label,
        "centre": right - layout.gap / 2,
        "left": left - 4,
        "right": right + layout.bar + 4,
        "floor": None if pair.floor is None else HEIGHT - pair.floor * scale,
        "low": HEIGHT - pair.time["low"] * scale,
        "high": HEIGHT - pair.time["high"] * scale,
        "bars": [
            place_bar("time", left, pair.time["median"] * scale, layout.bar, f"{pair.time['median']:.2f}"),
            place_bar("memory", right, pair.memory * scale, layout.bar, f"{pair.memory:.2f}"),
        ],
    }


def place_bar(name: str, x: float, height: float, width: int, number: str) -> dict[str, Any]:
    """A bar from zero with its number at its foot, or on top of one that is too short for it."""
    inside = height >= 1.2 * LINE
    return {
        "name": name,
        "x": x,
        "y": HEIGHT - height,
        "width": width,
        "height": height,
        "number": number,
        "number_class": f"on-{name}" if inside else "",
        "number_y": HEIGHT - 7 - (0 if inside else height),
    }


def place(panels: Sequence[dict[str, Any]], layout: Layout) -> tuple[float, float]:
    """Set the corners of the panels, row by row; returns width and height of the chart."""
    widest: float = 0
    y = TOP
    for start in range(0, len(panels), layout.columns):
        x: float = LEFT
        for one in panels[start : start + layout.columns]:
            one |= {"x": x, "y": y}
            x += one["width"] + PANEL_GAP
        widest = max(widest, x - PANEL_GAP + LINE)
        y += HEIGHT + layout.bottom
    return widest, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("image", type=Path)
    arguments = parser.parse_args()
    record = json.loads(arguments.measured.read_text(encoding="utf-8"))
    arguments.image.write_text(draw(record), encoding="utf-8")


if __name__ == "__main__":
    main()
