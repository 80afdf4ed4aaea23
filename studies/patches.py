"""Does the brightest patch of an inspection lie where the toy model reads?

`python studies/patches.py INSPECTION.json` takes an inspection of the toy task, where the place of each digit
that a chain reads is known, and counts for each model how often the patch that is most similar to the digit's token,
or to the token before it, whose state predicts the digit, is the one that is read.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vgpo.inspection import Inspection


def main(path: str) -> None:
    data = Inspection.read(Path(path)).data
    print("| model | digits read | at the token | at the token before | by chance |")
    print("|---|---:|---:|---:|---:|")
    for number, model in enumerate(data["models"]):
        found = [
            places
            for question in data["questions"]
            for rollout in question["rollouts"]
            if rollout["model"] == number
            for places in brightest(rollout, question["grids"][0])
        ]
        at_token = sum(own == read for own, _, read in found)
        at_token_before = sum(before == read for _, before, read in found)
        cells = len(data["questions"][0]["grids"][0]["tokens"])
        print(f"| {model['name']} | {len(found)} | {at_token} | {at_token_before} | {len(found) / cells:.0f} |")


def brightest(rollout: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Of each digit that is read: brightest patch at its token, at the one before, and the patch that is read."""
    peaks = [first for first, *_ in rollout["patches"]["peaks"]]
    for place, row, column in reads(rollout["tokens"]):
        if row < grid["rows"] and column < grid["columns"]:
            read = grid["tokens"][row * grid["columns"] + column]
            yield peaks[place], peaks[place - 1], read


def reads(tokens: list[str]) -> Iterator[tuple[int, int, int]]:
    """(place, row, column) of each digit that a chain reads: `row 2: 7 4 3, ...` reads three of the second row."""
    row, column, reading = 0, 0, False
    for place, token in enumerate(tokens):
        word = token.strip()
        if word.startswith("row "):
            row, column, reading = int(word.removeprefix("row ").rstrip(":")) - 1, 0, True
        elif not word.isdigit():
            reading = False
        elif reading:
            yield place, row, column
            column += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
