"""Batch statistics of a policy's visual focus."""

from collections.abc import Sequence

from torch import Tensor

from vgpo.metric_names import FOCUS_LATE_EARLY_RATIO, FOCUS_MEAN, FOCUS_ROWS_WITHOUT_IMAGE
from vgpo.ratio import Ratio

NUM_DECILES = 10


def focus_statistics(focus: Tensor, response_mask: Tensor, visual_rows: Tensor) -> dict[str, Ratio]:
    """Mean focus, its decay and the share of rows without an image.

    Args:
        focus: visual focus score rho (Eq. 4) in [0, 1]; (B, T).
        response_mask: bool (B, T), tokens that the policy sampled.
        visual_rows: bool (B,), rows with a visual token in their prompt.

    Returns:
        By metric: mean rho over tokens; mean rho of a rollout's last half over that of its first half, averaged over
        rollouts with at least two tokens; share of rows without an image. Such rows count only in the last one.
    """
    mask = response_mask & visual_rows[:, None]
    focus = focus.masked_fill(~mask, 0.0)
    decay, has_halves = late_early_ratios(focus, mask)
    return {
        FOCUS_MEAN: Ratio(focus.sum(), mask.sum()),
        FOCUS_LATE_EARLY_RATIO: Ratio(decay.masked_fill(~has_halves, 0.0).sum(), has_halves.sum()),
        FOCUS_ROWS_WITHOUT_IMAGE: Ratio((~visual_rows).sum(), visual_rows.new_ones(len(visual_rows)).sum()),
    }


def late_early_ratios(focus: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean rho of the last half of each rollout over that of its first half.

    Args:
        focus: rho, 0 outside of `mask`; (B, T).
        mask: included tokens, bool (B, T).

    Returns:
        The ratios (B,), and whether a rollout has at least two tokens; bool (B,).
    """
    length = mask.sum(1, keepdim=True)
    late = mask & (2 * mask.cumsum(1) > length)
    early = mask & ~late
    late_mean = focus.mul(late).sum(1) / late.sum(1).clamp(min=1)
    early_mean = focus.mul(early).sum(1) / early.sum(1).clamp(min=1)
    return late_mean / early_mean.clamp(min=1e-8), early.any(1)


def focus_by_decile(focus: Sequence[float | None]) -> list[float | None]:
    """Mean rho in each tenth of the response; None for a tenth without values."""
    tenths: list[list[float]] = [[] for _ in range(NUM_DECILES)]
    for position, rho in enumerate(focus):
        if rho is not None:
            tenths[position * NUM_DECILES // len(focus)].append(rho)
    return [sum(tenth) / len(tenth) if tenth else None for tenth in tenths]
