"""Visually-Perceptive Policy Optimization, VPPO (arXiv 2510.09285): credit for tokens that depend on the image.

Where the paper leaves details open, this implementation defines:

1. Equation 3 is a divergence over the vocabulary; as in the paper's experiments it is estimated at the sampled token.
2. Among tokens with equal dependency the earlier ones are kept, so that exactly ceil(k T) tokens of a response remain.
3. Rollout factors are scaled over the complete rollout batch ("within batch", Algorithm 1), independent of its split
into micro-batches and processes. If all rollouts depend on their images equally, all factors are 1.
4. A row without an image cannot be scored: its tokens keep the advantage of the base algorithm, and it is excluded
from the scaling of the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vgpo.equations import as_fraction, normalised_rollout_score
from vgpo.metric_names import SHAPING_DEPENDENCY, SHAPING_ROLLOUT_FACTOR_SPREAD, SHAPING_TOKEN_FACTOR_SPREAD
from vgpo.ratio import Ratio
from vgpo.settings_checks import check_choice, check_number, check_used
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, broadcast_advantages, mean_abs_deviation_from_one
from vgpo.shaping.dependency import token_dependency


@dataclass(frozen=True, kw_only=True)
class KLPerceptionSettings:
    """The paper's settings.

    Raises:
        ValueError: for a value out of its range, and for one that would have no effect.
    """

    keep_ratio: float = 0.4
    """k in (0, 1], share of a response's tokens, the most dependent ones, that are trained on."""
    least_factor: float = 0.9
    """beta_min in (0, 1], factor of the rollout that depends on its image the least."""
    intra: bool = True
    """Filter the tokens of a rollout (TGF in the paper)."""
    inter: bool = True
    """Weigh the rollouts of a batch (TAS in the paper)."""

    def __post_init__(self) -> None:
        check_number("keep_ratio", self.keep_ratio, low=0, high=1)
        check_number("least_factor", self.least_factor, low=0, high=1)
        check_choice("intra", self.intra, (True, False))
        check_choice("inter", self.inter, (True, False))
        check_used(self, "keep_ratio", intra=True)
        check_used(self, "least_factor", inter=True)


@torch.no_grad()
def pivotal_tokens(dependency: Tensor, scored_mask: Tensor, keep_ratio: float) -> Tensor:
    """The ceil(k T_i) most dependent tokens of each response, earlier ones first where they are equal. Equation (4).

    (B, T), bool (B, T) -> bool (B, T), False where a token is not scored.
    """
    share = as_fraction(keep_ratio)
    num_kept = -(-scored_mask.sum(dim=1, keepdim=True) * share.numerator // share.denominator)  # rounded up; (B, 1)
    order = torch.where(scored_mask, dependency, -1).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(dependency.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, places)
    return scored_mask & (rank < num_kept)


@torch.no_grad()
def dependency_factor(dependency: Tensor, scored_mask: Tensor, least_factor: float) -> Tensor:
    """Rollout factors alpha_i = b_min + (b_max - b_min) minmax(mean_t s_it), b_max such that they average 1. Eq. (5).

    (B, T) of a complete rollout batch, bool (B, T) -> (B,), 1 where no token of a row is scored.
    """
    takes_part = scored_mask.any(dim=1)
    mean = dependency.sum(dim=1) / scored_mask.sum(dim=1).clamp(min=1)
    one_group = torch.zeros_like(takes_part, dtype=torch.int64)
    scaled = normalised_rollout_score(mean, takes_part, one_group)
    average = scaled.sum() / takes_part.sum().clamp(min=1)
    # (b_max - b_min) * average = 1 - b_min
    factor = least_factor + (1 - least_factor) * scaled / average
    return torch.where(takes_part & (average > 0), factor, 1)


class KLPerceptionShaping(Shaping):
    """Keeps the tokens whose probability depends on the image, and weighs rollouts by how much they do."""

    Settings = KLPerceptionSettings

    def __init__(self, settings: KLPerceptionSettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        # With both levels off every factor is 1: no signals needed.
        both = {"log_probs", "corrupted_log_probs"}
        return frozenset(both if self.settings.intra or self.settings.inter else ())

    @property
    def scope(self) -> Scope:
        return "batch" if self.settings.inter else "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        if not self.signals:
            return broadcast_advantages(advantages, signals)
        assert signals.log_probs is not None
        assert signals.corrupted_log_probs is not None
        scored_mask = signals.scored_mask
        dependency = token_dependency(signals.log_probs, signals.corrupted_log_probs, scored_mask)
        token_factor = torch.ones_like(dependency)
        if self.settings.intra:
            kept = pivotal_tokens(dependency, scored_mask, self.settings.keep_ratio)
            token_factor = (kept | ~scored_mask).to(dependency.dtype)
        rollout_factor = torch.ones_like(dependency[:, 0])
        if self.settings.inter:
            rollout_factor = dependency_factor(dependency, scored_mask, self.settings.least_factor)
        factor = torch.where(scored_mask, token_factor * rollout_factor[:, None], 1)
        diagnostics = {"token_factor": token_factor, "rollout_factor": rollout_factor}
        statistics = {
            SHAPING_DEPENDENCY: Ratio(dependency.sum(), scored_mask.sum()),
            SHAPING_TOKEN_FACTOR_SPREAD: mean_abs_deviation_from_one(token_factor, scored_mask),
            SHAPING_ROLLOUT_FACTOR_SPREAD: mean_abs_deviation_from_one(rollout_factor, scored_mask.any(dim=1)),
        }
        return Shaped(advantages[:, None] * factor, diagnostics, statistics)
