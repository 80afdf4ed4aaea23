"""The script that draws the figure of docs/results.md."""

from xml.etree import ElementTree

import pytest
from studies.figure import BLUE, ORANGE, differences, figure


def row(method: str, seed: int, accuracy: float, setting: str = "<a>") -> dict[str, str]:
    figures = {"accuracy": str(accuracy), "mean_training_accuracy": str(accuracy)}
    return {"setting": setting, "method": method, "seed": str(seed), **figures}


def test_differences_are_paired_and_in_points():
    found = differences({"dapo": {0: 0.5, 1: 0.6}, "vgpo": {0: 0.6, 1: 0.7}, "one_seed": {0: 0.6}})
    assert found == {"vgpo": pytest.approx((10, 10, 10))}


def test_an_interval_that_is_clear_of_0_is_orange():
    rows = [row("dapo", 0, 0.5), row("dapo", 1, 0.6)]
    rows += [row("vgpo", 0, 0.6), row("vgpo", 1, 0.7), row("grpo", 0, 0.4), row("grpo", 1, 0.7)]
    svg = ElementTree.fromstring(figure(rows))
    circles = [one.get("fill") for one in svg.iter() if one.tag.endswith("circle")]
    assert circles == [ORANGE, BLUE] * 2
    assert "<a>" in [one.text for one in svg.iter() if one.tag.endswith("text")]


def test_a_setting_without_a_method_has_an_empty_line():
    rows = [row(method, seed, 0.5, setting) for method in ("dapo", "vgpo") for seed in (0, 1) for setting in "ab"]
    svg = figure([*rows, row("grpo", 0, 0.6, "a"), row("grpo", 1, 0.7, "a")])
    assert svg.count("<circle") == 2 * 3
