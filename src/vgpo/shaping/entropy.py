"""Advantages with a bonus for entropy (Cheng et al., arXiv 2506.14758): more credit where the policy hesitates.

It does not use images: rows without one are shaped like all others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vgpo.metric_names import SHAPING_TOKEN_FACTOR_SPREAD
from vgpo.settings_checks import check_number
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, mean_abs_deviation_from_one


@dataclass(frozen=True, kw_only=True)
class EntropySettings:
    """The paper's settings.

    Raises:
        ValueError: for a value out of its range.
    """

    entropy_weight: float = 0.4
    """alpha >= 0, the bonus for each nat of entropy; 0 is the base algorithm."""
    bonus_divisor: float = 2.0
    """kappa > 1: the bonus is at most |A| / kappa, so that no advantage changes its sign."""

    def __post_init__(self) -> None:
        check_number("entropy_weight", self.entropy_weight, low=0, low_included=True)
        check_number("bonus_divisor", self.bonus_divisor, low=1)


@torch.no_grad()
def entropy_advantages(
    advantages: Tensor, entropy: Tensor, response_mask: Tensor, settings: EntropySettings
) -> Tensor:
    """Bounded entropy bonus: A'_t = A + min(alpha H_t, |A| / kappa), arXiv 2506.14758; A off the response.

    (B,), (B, T) in nats, bool (B, T) -> (B, T), float32 or better. Entropy is read on the response only.
    """
    dtype = torch.promote_types(torch.promote_types(advantages.dtype, entropy.dtype), torch.float32)
    base = advantages[:, None].to(dtype)  # (B, 1)
    bonus = torch.minimum(settings.entropy_weight * entropy.to(dtype), base.abs() / settings.bonus_divisor)
    return base + torch.where(response_mask, bonus, 0)


class EntropyShaping(Shaping):
    """Adds a bounded bonus for the entropy at each token."""

    Settings = EntropySettings

    def __init__(self, settings: EntropySettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"entropy"})

    @property
    def scope(self) -> Scope:
        return "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        assert signals.entropy is not None
        shaped = entropy_advantages(advantages, signals.entropy, signals.response_mask, self.settings)
        base = advantages[:, None].expand_as(shaped)
        factor = torch.where(base == 0, 1, shaped / base)  # for the records; 0 / 0 for zero advantages
        has_advantage = signals.response_mask & (base != 0)
        statistics = {SHAPING_TOKEN_FACTOR_SPREAD: mean_abs_deviation_from_one(factor, has_advantage)}
        return Shaped(shaped, {"token_factor": factor}, statistics)
