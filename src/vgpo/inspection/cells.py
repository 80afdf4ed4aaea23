"""Token-patch similarities as an inspection stores them: on grids of bounded size, one byte each."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vgpo.inspection.maps import highest
from vgpo.inspection.patches import Grid

MAX_SIDE = 16  # cells along a grid
LEVELS = 255


def block_of(grid: Grid) -> tuple[int, int]:
    """Rows and columns of visual tokens that are merged into one cell."""
    return -(-grid.rows // MAX_SIDE), -(-grid.columns // MAX_SIDE)


def grid_entries(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """The grids of a prompt as stored in the file; `tokens` are the columns of its maps.

    If no grid has more than `MAX_SIDE` cells along a side, a column is a visual token. Otherwise the columns are the
    concatenated cells of all grids, each the mean over a block of tokens (`averaged`: its rows and columns). Blocks at
    the right and lower edge, and the box, may extend beyond the tokens.
    """
    if not is_averaged(grids):
        return [entry(grid, grid.rows, grid.columns, list(grid.tokens)) for grid in grids]
    entries, first = [], 0
    for grid in grids:
        down, across = block_of(grid)
        rows, columns = -(-grid.rows // down), -(-grid.columns // across)
        left, top, right, bottom = grid.box
        right = left + (right - left) * columns * across / grid.columns
        bottom = top + (bottom - top) * rows * down / grid.rows
        cells = list(range(first, first + rows * columns))
        made = entry(grid, rows, columns, cells)
        entries.append({**made, "box": [left, top, right, bottom], "averaged": [down, across]})
        first += rows * columns
    return entries


def entry(grid: Grid, rows: int, columns: int, tokens: list[int]) -> dict[str, Any]:
    return {
        "image": grid.image,
        "name": grid.name,
        "box": list(grid.box),
        "rows": rows,
        "columns": columns,
        "tokens": tokens,
    }


def cell_values(cosines: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The columns of `grid_entries`: (T, V) -> (T, C)."""
    if not is_averaged(grids):
        return cosines
    means = []
    for grid in grids:
        values = cosines[:, list(grid.tokens)].view(-1, 1, grid.rows, grid.columns)
        block = block_of(grid)
        # A block at the edge is divided by the number of its tokens.
        means.append(avg_pool2d(values, block, ceil_mode=True, count_include_pad=False).flatten(1))
    return torch.cat(means, dim=1)


def is_averaged(grids: Sequence[Grid]) -> bool:
    return any(block_of(grid) != (1, 1) for grid in grids)


def packed(values: Tensor, grids: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """A map (T, C) as stored in the file: value = low + (high - low) * byte / 255.

    Args:
        values: Of each token in each column.
        grids: The columns of each grid.

    Returns:
        None if there is no value, or one is not finite.
    """
    if values.numel() == 0 or not values.isfinite().all():
        return None
    low, high = float(values.min()), float(values.max())
    levels = ((values - low) * (LEVELS / ((high - low) or 1.0))).round().to(torch.uint8)
    with_mean = torch.cat([values, values.mean(0, keepdim=True)])
    return {
        "low": low,
        "high": high,
        "columns": values.shape[1],
        "data": base64.b64encode(levels.cpu().numpy().tobytes()).decode("ascii"),
        "peaks": highest(with_mean.cpu().numpy(), grids),
    }
