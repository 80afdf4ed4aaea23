"""Perception-Grounded Policy Optimization, PGPO (arXiv 2604.01840): advantages moved to tokens that need the image.

Where the paper leaves details open, this implementation defines:

1. The divergence between the policy with the images and with the text alone is estimated at the sampled token.
   "Text alone" is a prompt without its image tokens.
2. The threshold tau applies to the scaled score itself, and the weights of a response add up to its number of tokens.
3. If all tokens of a response depend on the images equally, and in rows without an image, all weights are 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vgpo.equations import normalised_weight
from vgpo.metric_names import SHAPING_DEPENDENCY, SHAPING_TOKEN_FACTOR_SPREAD
from vgpo.ratio import Ratio
from vgpo.settings_checks import check_number
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, mean_abs_deviation_from_one
from vgpo.shaping.dependency import token_dependency


@dataclass(frozen=True, kw_only=True)
class PGPOSettings:
    """The paper's settings.

    Raises:
        ValueError: for a value out of its range.
    """

    threshold: float = 0.4
    """tau in (0, 1), scaled dependency from which a token is amplified; below it, it is damped."""
    boost: float = 2.0
    """beta >= 0, extra weight of the most dependent token relative to one at the threshold, before scaling."""

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, low=0, high=1)
        if self.threshold == 1:
            raise ValueError("threshold is 1, expected a number below 1: no token would be amplified.")
        check_number("boost", self.boost, low=0, low_included=True)


@torch.no_grad()
def grounded_weight(dependency: Tensor, scored_mask: Tensor, settings: PGPOSettings) -> Tensor:
    """Threshold-gated weights that keep the sum of a response, equations (6) and (7) of arXiv 2604.01840.

    With I = minmax(log(1 + s)) over a response: w = I / tau below tau, 1 + beta (I - tau) / (1 - tau) from tau on,
    times T / sum w.

    (B, T), bool (B, T) -> (B, T) >= 0, 1 where a token is not scored.
    """
    tau = settings.threshold
    importance = normalised_weight(dependency.log1p(), scored_mask)
    damped, amplified = importance / tau, 1 + settings.boost * (importance - tau) / (1 - tau)
    weight = torch.where(scored_mask, torch.where(importance < tau, damped, amplified), 0)
    total = weight.sum(dim=1, keepdim=True)
    weight = weight * scored_mask.sum(dim=1, keepdim=True) / total
    return torch.where(scored_mask & (total > 0), weight, 1)


class PGPOShaping(Shaping):
    """Amplifies tokens whose probability depends on the images, and damps the others."""

    Settings = PGPOSettings

    def __init__(self, settings: PGPOSettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"log_probs", "text_only_log_probs"})

    @property
    def scope(self) -> Scope:
        return "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        assert signals.log_probs is not None
        assert signals.text_only_log_probs is not None
        scored_mask = signals.scored_mask
        dependency = token_dependency(signals.log_probs, signals.text_only_log_probs, scored_mask)
        factor = grounded_weight(dependency, scored_mask, self.settings)
        statistics = {
            SHAPING_DEPENDENCY: Ratio(dependency.sum(), scored_mask.sum()),
            SHAPING_TOKEN_FACTOR_SPREAD: mean_abs_deviation_from_one(factor, scored_mask),
        }
        return Shaped(advantages[:, None] * factor, {"token_factor": factor}, statistics)
