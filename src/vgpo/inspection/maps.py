"""Patch maps made small enough for a page: packed, and where they are many also coarser."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAP_BYTES = 2_600_000  # of all maps of a page together


class Fineness(NamedTuple):
    """How finely maps are kept: `levels` values between a map's lowest and highest, blocks of `block`^2 cells."""

    levels: int
    block: int


FINENESSES = tuple(Fineness(*pair) for pair in ((256, 1), (64, 1), (32, 1), (32, 2), (32, 4), (32, 8)))


def pack_maps(
    questions: Sequence[Mapping[str, Any]], budget: int = MAP_BYTES
) -> tuple[Fineness, list[list[dict[str, Any] | None]]]:
    """Pack all maps of an inspection at the finest step at which they fit, or at the coarsest.

    Args:
        questions: as in the inspection's file.
        budget: characters that all maps may take.

    Returns:
        The fineness, and per question a packed map per rollout (None where it has none): `low`, `high`; `cells`, the
        number of cells of all grids in their order, row by row; `data`: per token the difference of each cell's level
        to that of the token before (modulo 256), one byte each, compressed (zlib), base64.
    """
    for fineness in FINENESSES:
        packed = [
            [pack_map(rollout["patches"], question["grids"], fineness) for rollout in question["rollouts"]]
            for question in questions
        ]
        if sum(len(one["data"]) for maps in packed for one in maps if one is not None) <= budget:
            break
    return fineness, packed


def pack_map(
    patches: Mapping[str, Any] | None, grids: Sequence[Mapping[str, Any]], fineness: Fineness
) -> dict[str, Any] | None:
    if patches is None or not grids:
        return None
    values = read_map(patches)
    cells = np.concatenate([average(values[:, one["tokens"]], one, fineness.block) for one in grids], axis=1)
    levels = np.round(cells * (fineness.levels - 1)).astype(np.uint8)
    changes = np.diff(levels, axis=0, prepend=np.zeros_like(levels[:1]))  # uint8 wraps around
    data = base64.b64encode(zlib.compress(changes.tobytes())).decode("ascii")
    return {"low": patches["low"], "high": patches["high"], "cells": levels.shape[1], "data": data}


def read_map(patches: Mapping[str, Any]) -> np.ndarray:
    """The map (T, V) of a rollout in shares of the way from its lowest value (0) to its highest (1)."""
    levels = np.frombuffer(base64.b64decode(patches["data"]), dtype=np.uint8)
    return levels.reshape(-1, patches["columns"]) / 255


def average(values: np.ndarray, grid: Mapping[str, Any], block: int) -> np.ndarray:
    """Means over blocks of a grid's cells, (T, rows * columns) -> (T, blocks); the last ones may be cut."""
    rows, columns = (np.arange(0, grid[side], block) for side in ("rows", "columns"))

    def sums(cells: np.ndarray) -> np.ndarray:
        cells = cells.reshape(len(cells), grid["rows"], grid["columns"])
        return np.add.reduceat(np.add.reduceat(cells, rows, axis=1), columns, axis=2).reshape(len(cells), -1)

    return sums(values) / sums(np.ones_like(values[:1]))
