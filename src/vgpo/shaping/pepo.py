"""Perception-Exploration Policy Optimization, PEPO (arXiv 2603.22847): credit for similarity to the image, gated by
entropy.

Where the paper leaves details open, this implementation defines:

1. Hidden states are those at a token's own position, the last layer's after the final norm.
2. Where the visual similarity, or the entropy, is the same at all tokens of a response, its scaled value is 0.
3. In rows without an image all weights are 1.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from vgpo.equations import normalised_weight, token_deviation
from vgpo.metric_names import SHAPING_TOKEN_FACTOR_SPREAD
from vgpo.settings_checks import check_choice, check_number
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, mean_abs_deviation_from_one


@dataclass(frozen=True, kw_only=True)
class PEPOSettings:
    """The paper's settings.

    Raises:
        ValueError: for a value out of its range.
    """

    gate_weight: float = 0.05
    """alpha in [0, 1], strength of the gate that mixes entropy in; 0 is similarity alone."""
    softmax_temperature: float = 1.0
    """Divides the gated similarity > 0. The paper has none; the authors' training scripts set 1.8."""
    gradual: bool = True
    """Ramp the weights up from 1 (lambda = share of training done), or apply them fully from the start."""

    def __post_init__(self) -> None:
        check_number("gate_weight", self.gate_weight, low=0, high=1, low_included=True)
        check_number("softmax_temperature", self.softmax_temperature, low=0)
        check_choice("gradual", self.gradual, (True, False))


@torch.no_grad()
def perception_weight(similarity: Tensor, entropy: Tensor, scored_mask: Tensor, settings: PEPOSettings) -> Tensor:
    """Weights w_t = T softmax_t((1 + alpha tanh g_t) VS_t), where g = VS^ + H^ - mean(VS^ + H^). arXiv 2603.22847.

    VS^ and H^ are similarity and entropy, scaled to [0, 1] over each response; VS itself is not.

    (B, T), (B, T), bool (B, T) -> (B, T) > 0, averaging 1 over each response; 1 where a token is not scored.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    similarity = torch.where(scored_mask, similarity.to(dtype), 0)
    mixed = normalised_weight(similarity, scored_mask) + normalised_weight(entropy.to(dtype), scored_mask)
    gate = 1 + settings.gate_weight * token_deviation(mixed, scored_mask).tanh()
    logits = torch.where(scored_mask, gate * similarity / settings.softmax_temperature, -inf)
    weight = logits.softmax(dim=1) * scored_mask.sum(dim=1, keepdim=True)
    return torch.where(scored_mask, weight, 1)


class PEPOShaping(Shaping):
    """Weighs tokens by their similarity to the image, gated by their entropy."""

    Settings = PEPOSettings

    def __init__(self, settings: PEPOSettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"layer_similarity", "entropy", *(["progress"] if self.settings.gradual else [])})

    @property
    def scope(self) -> Scope:
        return "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        assert signals.layer_similarity is not None
        assert signals.entropy is not None
        factor = perception_weight(signals.layer_similarity, signals.entropy, signals.scored_mask, self.settings)
        if self.settings.gradual:
            assert signals.progress is not None
            factor = 1 + signals.progress[:, None] * (factor - 1)  # (1 - lambda) + lambda w
        statistics = {SHAPING_TOKEN_FACTOR_SPREAD: mean_abs_deviation_from_one(factor, signals.scored_mask)}
        return Shaped(advantages[:, None] * factor, {"token_factor": factor}, statistics)
