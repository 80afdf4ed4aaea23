"""Compress patch maps to fit on a page: packed, and coarser if there are many."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

MAP_BYTES = 2_600_000  # of all maps of a page together
FEW = 24  # questions from which the fineness is estimated


class Fineness(NamedTuple):
    """Resolution of maps: `levels` values between a map's lowest and highest, blocks of `block`^2 cells."""

    levels: int
    block: int


FINENESSES = tuple(Fineness(*pair) for pair in ((256, 1), (64, 1), (32, 1), (32, 2), (32, 4), (32, 8)))


def pack_maps(
    questions: Sequence[Mapping[str, Any]], budget: int = MAP_BYTES
) -> tuple[Fineness, list[list[dict[str, Any] | None]]]:
    """Pack all maps of an inspection at the finest resolution at which they fit, or at the coarsest.

    For many maps, the initial resolution is estimated from a few of them.

    Args:
        questions: as in the inspection's file.
        budget: characters that all maps may take.

    Returns:
        The resolution, and per question a packed map per rollout (None if it has none): `low`, `high`; `cells`, the
        number of cells of all grids in order, row by row; `data`: per token the difference of each cell's level to
        that of the previous token (modulo 256), one byte each, compressed (zlib), base64; `peaks`: per token, and last
        for their mean, each grid's highest cell, highest first.
    """
    mapped = [question for question in questions if any(one["patches"] for one in question["rollouts"])]
    few = mapped[:: -(-len(mapped) // FEW) or 1]
    share = budget * len(few) / max(1, len(mapped))
    finenesses = iter(FINENESSES)
    fineness = next((one for one in finenesses if size_of(packed_at(one, few)) <= share), FINENESSES[-1])
    packed = packed_at(fineness, questions)
    while size_of(packed) > budget and (coarser := next(finenesses, None)):
        fineness, packed = coarser, packed_at(coarser, questions)
    return fineness, packed


def packed_at(fineness: Fineness, questions: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any] | None]]:
    return [
        [pack_map(rollout["patches"], question["grids"], fineness) for rollout in question["rollouts"]]
        for question in questions
    ]


def size_of(packed: Sequence[Sequence[Mapping[str, Any] | None]]) -> int:
    return sum(len(one["data"]) for maps in packed for one in maps if one is not None)


def pack_map(
    patches: Mapping[str, Any] | None, grids: Sequence[Mapping[str, Any]], fineness: Fineness
) -> dict[str, Any] | None:
    if patches is None or not grids:
        return None
    values = read_map(patches)
    parts = [average(values[:, one["tokens"]], one, fineness.block) for one in grids]
    cells = np.concatenate(parts, axis=1)
    levels = np.round(cells * (fineness.levels - 1)).astype(np.uint8)
    changes = np.diff(levels, axis=0, prepend=np.zeros_like(levels[:1]))  # uint8 wraps around
    return {
        "low": patches["low"],
        "high": patches["high"],
        "cells": levels.shape[1],
        "data": base64.b64encode(zlib.compress(changes.tobytes())).decode("ascii"),
        "peaks": peaks_of_file(patches, grids) if fineness.block == 1 else peaks_of_blocks(parts),
    }


def peaks_of_file(patches: Mapping[str, Any], grids: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The file's peaks, computed from values before quantisation, as cell numbers."""
    cell_of = {column: cell for cell, column in enumerate(token for one in grids for token in one["tokens"])}
    return [[cell_of[column] for column in columns] for columns in patches["peaks"]]


def peaks_of_blocks(parts: Sequence[np.ndarray]) -> list[list[int]]:
    """Peaks of means over the file's cells, (T, blocks) for each grid."""
    ends = accumulate((part.shape[1] for part in parts), initial=0)
    cells = np.concatenate(parts, axis=1)
    with_mean = np.concatenate([cells, cells.mean(0, keepdims=True)])
    return highest(with_mean, [range(*pair) for pair in pairwise(ends)])


def highest(values: np.ndarray, grids: Sequence[Sequence[int]]) -> list[list[int]]:
    """The column of the highest value of each grid, highest first, in each row.

    Args:
        values: (N, C).
        grids: the columns of each.
    """
    peaks = np.stack([np.asarray(columns)[values[:, columns].argmax(1)] for columns in grids], axis=1)  # (N, grids)
    order = np.argsort(-np.take_along_axis(values, peaks, axis=1), axis=1, kind="stable")
    return np.take_along_axis(peaks, order, axis=1).tolist()


def read_map(patches: Mapping[str, Any]) -> np.ndarray:
    """The map (T, V) of a rollout, scaled from its lowest value (0) to its highest (1)."""
    levels = np.frombuffer(base64.b64decode(patches["data"]), dtype=np.uint8)
    return levels.reshape(-1, patches["columns"]) / 255


def average(values: np.ndarray, grid: Mapping[str, Any], block: int) -> np.ndarray:
    """Means over blocks of a grid's cells, (T, rows * columns) -> (T, blocks); the last blocks may be smaller."""
    rows, columns = (np.arange(0, grid[side], block) for side in ("rows", "columns"))

    def sums(cells: np.ndarray) -> np.ndarray:
        cells = cells.reshape(len(cells), grid["rows"], grid["columns"])
        return np.add.reduceat(np.add.reduceat(cells, rows, axis=1), columns, axis=2).reshape(len(cells), -1)

    return sums(values) / sums(np.ones_like(values[:1]))
