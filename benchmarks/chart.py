"""Draw what `benchmarks/step.py --json FILE` measured: time and memory of a step beside GRPO's, and the token floor.

python benchmarks/chart.py FILE docs/images/step.svg
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LEFT, TOP, HEIGHT = 44, 64, 190  # of the plots, in pixels
BAR, GAP, SPACE = 28, 4, 30  # a bar, the gap within a pair of bars, the space between pairs
PANEL_GAP = 30
NARROWEST = 150  # a panel, for the text below it
BOTTOM = 64  # below the plots, for group sizes and the names of cases


def draw(record: dict[str, Any]) -> str:
    """An SVG: one panel for a case, in it one pair of bars for a group size."""
    rows = record["results"]
    highest = max(max(row["ratios"]["time_ratio"]["high"], row["memory_ratio"], 1.0) for row in rows)
    scale = HEIGHT / highest
    panels, x = [], LEFT
    for case in dict.fromkeys(row["case"] for row in rows):
        panels.append(panel([row for row in rows if row["case"] == case], x, scale))
        x = panels[-1]["right"] + PANEL_GAP
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    ticks = [{"value": f"{quarter / 4:g}", "y": TOP + HEIGHT - quarter / 4 * scale}
             for quarter in range(int(highest * 4) + 1)]  # fmt: skip
    return environment.get_template("chart.svg.jinja").render(
        panels=panels, ticks=ticks, left=LEFT, top=TOP, base=TOP + HEIGHT, one=TOP + HEIGHT - scale,
        width=x - PANEL_GAP + 16, height=TOP + HEIGHT + BOTTOM, machine=record["machine"],
    )  # fmt: skip


def panel(rows: Sequence[dict[str, Any]], x: float, scale: float) -> dict[str, Any]:
    """Places of one case's bars, from `x` on."""
    base, pairs = TOP + HEIGHT, []
    width = len(rows) * (2 * BAR + GAP + SPACE)
    right = x + max(width, NARROWEST)
    first = (x + right - width + SPACE) / 2
    for i, row in enumerate(rows):
        left = first + i * (2 * BAR + GAP + SPACE)
        time, memory = row["ratios"]["time_ratio"], row["memory_ratio"]
        pairs.append(
            {
                "group": row["group"],
                "centre": left + BAR + GAP / 2,
                "left": left - 5,
                "right": left + 2 * BAR + GAP + 5,
                "floor": base - row["floor"] * scale,
                "low": base - time["low"] * scale,
                "high": base - time["high"] * scale,
                "bars": [bar("time", left, time["median"], scale),
                         bar("memory", left + BAR + GAP, memory, scale)],
            }
        )  # fmt: skip
    sizes = rows[0]
    return {
        "case": sizes["case"].replace("_", "-"),
        "sizes": f"prompt {sizes['prompt']:.0f}, response {sizes['response']}",
        "left": x,
        "right": right,
        "pairs": pairs,
    }


def bar(name: str, x: float, value: float, scale: float) -> dict[str, Any]:
    """A bar from zero to `value`."""
    return {"name": name, "x": x, "y": TOP + HEIGHT - value * scale, "width": BAR, "height": value * scale,
            "number": f"{value:.2f}"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    record = json.loads(arguments.measured.read_text(encoding="utf-8"))
    arguments.picture.write_text(draw(record), encoding="utf-8")


if __name__ == "__main__":
    main()
