"""Slopes of costs are those of least squares, with Student's interval."""

import math

import pytest
import torch
from benchmarks import growth


def test_a_power_law_is_found_exactly() -> None:
    sizes = [2, 4, 8, 16, 32]
    found = growth.fit(sizes, [3 * size**0.7 for size in sizes])
    assert (found.slope, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))


def test_an_interval_is_that_of_student() -> None:
    # x = 0, 1, 2 and y = 0, 1, 1: slope 1/2, squared residuals 1/36 + 1/9 + 1/36 = 1/6, Sxx 2, one degree of freedom.
    found = growth.fit([1, math.e, math.e**2], [1, math.e, math.e])
    half = 12.706 * math.sqrt((1 / 6) / 1 / 2)
    assert (found.slope, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


@pytest.mark.parametrize("freedom", growth.T_QUANTILES)
def test_quantiles_leave_five_per_cent_outside(freedom: int) -> None:
    t = torch.linspace(0, growth.T_QUANTILES[freedom], 100_001, dtype=torch.float64)
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = constant * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert 2 * torch.trapezoid(density, t).item() == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize("ladders", [*growth.LADDERS.values(), growth.TINY])
def test_ladders_cross_in_the_middle_and_leave_a_residual(ladders: growth.Ladders) -> None:
    points = ladders.points()
    assert set(ladders.steps) == set(growth.VARIABLES)
    assert len(points) == sum(len(steps) - 1 for steps in ladders.steps.values()) + 1
    for variable, steps in ladders.steps.items():
        assert list(steps) == sorted(set(steps))
        assert ladders.middle in ladders.along(variable)
        assert len(steps) - 2 in growth.T_QUANTILES


def test_a_point_names_its_sizes() -> None:
    point = growth.Point(group=8, text=64, response=32, side=4)
    assert point.case == growth.Case(prompt=80, side=4, response=32)
    assert str(point) == "8 rollouts (G), 64 text tokens, 32 response tokens, 16 image tokens"
