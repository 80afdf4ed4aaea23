"""Metrics of focus against loops and literals."""

import torch

from vgpo.focus import focus_statistics


def mean_of(ratio):
    return float(ratio.total) / float(ratio.number)


def test_hand_computed():
    nan = float("nan")
    focus = torch.tensor([[0.8, 0.4, 0.2, nan], [0.5, nan, nan, nan], [nan, nan, nan, nan]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    statistics = focus_statistics(focus, mask, visual_rows=torch.tensor([True, True, False]))
    # (0.8 + 0.4 + 0.2 + 0.5) / 4 tokens of rows with an image
    assert abs(mean_of(statistics["focus/mean"]) - 0.475) < 1e-6
    # Row 0: t = 2 and 3 are late (2t > 3): (0.4 + 0.2) / 2 over 0.8. Row 1 has one token and no first half.
    assert abs(mean_of(statistics["focus/late_early_ratio"]) - 0.375) < 1e-6
    assert abs(mean_of(statistics["focus/rows_without_image"]) - 1 / 3) < 1e-6


def test_steady_focus_has_ratio_one_at_any_length():
    for length in (2, 3, 7, 8):
        focus = torch.full((1, length), 0.3)
        statistics = focus_statistics(focus, torch.ones(1, length).bool(), torch.tensor([True]))
        assert abs(mean_of(statistics["focus/late_early_ratio"]) - 1) < 1e-6


def test_tool_tokens_do_not_count():
    focus = torch.tensor([[0.8, 9.0, 0.4]])
    statistics = focus_statistics(focus, torch.tensor([[True, False, True]]), torch.tensor([True]))
    assert abs(mean_of(statistics["focus/late_early_ratio"]) - 0.5) < 1e-6
