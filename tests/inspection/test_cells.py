"""Maps on grids of bounded size, against loops over their cells."""

import base64
import math

import pytest
import torch

from vgpo.inspection.cells import MAX_SIDE, cell_values, grid_entries, packed
from vgpo.inspection.patches import Grid


def grid(rows: int, columns: int, first: int = 0, image: int = 0) -> Grid:
    return Grid(image, "whole", (0.0, 0.0, 1.0, 1.0), rows, columns, tuple(range(first, first + rows * columns)))


def test_small_grids_are_kept_token_by_token() -> None:
    grids = [grid(3, MAX_SIDE), grid(2, 2, first=49, image=1)]  # token 48 stands nowhere
    values = torch.randn(5, 53)
    assert cell_values(values, grids) is values
    entries = grid_entries(grids)
    assert [entry["tokens"] for entry in entries] == [list(range(48)), [49, 50, 51, 52]]
    assert "averaged" not in entries[0]


def test_cells_of_large_grids_are_means_over_blocks() -> None:
    grids = [grid(17, 40), grid(2, 3, first=17 * 40 + 1, image=1)]
    values = torch.randn(3, 17 * 40 + 7)
    found, (large, small) = cell_values(values, grids), grid_entries(grids)
    assert (large["rows"], large["columns"], large["averaged"]) == (9, 14, [2, 3])
    assert (small["rows"], small["columns"], small["averaged"]) == (2, 3, [1, 1])
    assert large["tokens"] + small["tokens"] == list(range(found.shape[1]))
    # 9 blocks of 2 rows reach a row beyond the 17, and 14 of 3 columns two columns beyond the 40.
    assert large["box"] == pytest.approx([0, 0, 42 / 40, 18 / 17])
    for row in range(9):
        for column in range(14):
            block = [
                r * 40 + c
                for r in range(2 * row, min(2 * row + 2, 17))
                for c in range(3 * column, min(3 * column + 3, 40))
            ]
            mean = torch.stack([values[:, token] for token in block]).mean(0)
            assert torch.allclose(found[:, large["tokens"][row * 14 + column]], mean, atol=1e-5)
    assert torch.allclose(found[:, small["tokens"]], values[:, 17 * 40 + 1 :])


def test_packed_values_come_back_within_half_a_level() -> None:
    values = torch.randn(4, 7)
    found = packed(values, [range(7)])
    assert found is not None
    step = (found["high"] - found["low"]) / 255
    levels = base64.b64decode(found["data"])
    assert found["columns"] == 7
    assert (min(levels), max(levels)) == (0, 255)
    for place, level in enumerate(levels):
        assert math.isclose(found["low"] + level * step, values.flatten()[place], abs_tol=0.51 * step)


def test_a_map_of_one_value_is_packed() -> None:
    found = packed(torch.full((2, 2), 0.25), [range(2)])
    assert found is not None
    assert (found["low"], found["high"], base64.b64decode(found["data"])) == (0.25, 0.25, bytes(4))


def test_peaks_are_those_of_the_values_before_they_became_bytes() -> None:
    values = torch.rand(30, 9)
    values[0, :2] = torch.tensor([0.0, 1.0])
    values[1:] = 0.5 + values[1:] / 1000  # all in one level or two
    grids = [[0, 1, 2], [5, 4, 3, 7]]  # columns 6 and 8 stand nowhere
    found = packed(values, grids)
    assert found is not None
    with_mean = torch.cat([values, values.mean(0, keepdim=True)]).tolist()
    for row, peaks in zip(with_mean, found["peaks"], strict=True):
        tops = [max(columns, key=row.__getitem__) for columns in grids]
        assert peaks == sorted(tops, key=lambda column: -row[column])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_map(value: float) -> None:
    values = torch.randn(4, 7)
    values[2, 3] = value
    assert packed(values, [range(7)]) is None
    assert packed(values[:0], [range(7)]) is None
