"""Weights and advantages of the responses to one question, computed from their similarities."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from vgpo.equations import VGPOSettings, compensated_weight, focus_score, progress, reweight_advantages
from vgpo.focus import focus_statistics
from vgpo.inspection.schema import PER_TOKEN
from vgpo.metric_names import FOCUS_LATE_EARLY_RATIO

SPREAD = 1e-4  # GRPO's epsilon for groups whose rewards are all equal
WEIGHED = tuple(name for name in PER_TOKEN if name != "similarity")  # derived values
DIGITS = 6


@dataclass(frozen=True)
class Weights:
    """Values for G responses of up to T tokens, by their names in an inspection's file.

    Attributes:
        focus: rho (Eq. 4 of arXiv 2604.09349) of the state after reading each token, whatever the settings; (G, T).
        gate: G of Eq. 6; bool (G, T).
        weight: w of Eq. 5, of the state that the settings name, as are gate, factors and advantage; (G, T).
        token_factor: 1 + psi of Eq. 8; (G, T).
        rollout_factor: 1 + phi of Eq. 11, (G,), or None for a single response.
        advantage: A^V of Eq. 12, (G, T), or None for a single response.
        late_early_ratio: As in `vgpo.focus.focus_statistics`; None for a response of one token.
    """

    focus: Tensor
    gate: Tensor
    weight: Tensor
    token_factor: Tensor
    rollout_factor: Tensor | None
    advantage: Tensor | None
    late_early_ratio: list[float | None]

    def entry(self, i: int, mask: Tensor) -> dict[str, Any]:
        """Values for response `i`, whose tokens are at `mask`, bool (T,)."""
        per_token = {name: vars(self)[name] for name in WEIGHED}
        return {
            **{name: None if values is None else json_values(values[i][mask]) for name, values in per_token.items()},
            "rollout_factor": None if self.rollout_factor is None else json_values(self.rollout_factor)[i],
            "late_early_ratio": self.late_early_ratio[i],
        }


# For a question without an image, or without a token in its responses.
NOTHING = dict.fromkeys((*WEIGHED, "rollout_factor", "late_early_ratio"))


def weigh(
    similarity: Tensor, weighed: Tensor, mask: Tensor, advantages: Tensor | None, settings: VGPOSettings
) -> Weights:
    """Compute the weights for the responses of one group.

    Args:
        similarity: S of Eq. 3, of the state after reading each token; (G, T).
        weighed: S of the state that `settings.focus_state` names; (G, T).
        mask: Tokens of the responses; bool (G, T).
        advantages: A_i, (G,), or None if they are unknown.
        settings: Settings of the method.
        weighed: The similarity that defines the focus (`VGPOSettings.focus_state`), (G, T); None for S.
    """
    number = len(similarity)
    plain = similarity.new_zeros(number) if advantages is None else advantages
    group = torch.zeros(number, dtype=torch.long, device=similarity.device)
    shaped = reweight_advantages(plain, weighed, mask, group, settings)
    growth = progress(mask.cumsum(1), mask.sum(1, keepdim=True), settings, shaped.focus.dtype)
    focus = focus_score(similarity, mask, "paper")
    alone = advantages is None
    return Weights(
        focus=focus,
        gate=shaped.gate,
        weight=compensated_weight(shaped.focus, shaped.gate, growth, settings.strength),
        token_factor=shaped.token_factor,
        rollout_factor=None if alone else shaped.rollout_factor,
        advantage=None if alone else shaped.advantages,
        late_early_ratio=[late_early_ratio(*row) for row in zip(focus, mask, strict=True)],
    )


def late_early_ratio(focus: Tensor, mask: Tensor) -> float | None:
    """Late/early ratio of one response, as in `vgpo.focus.focus_statistics`; (T,), bool (T,)."""
    visual = mask.new_ones(1)
    ratio = focus_statistics(focus[None], mask[None], visual)[FOCUS_LATE_EARLY_RATIO]
    return json_value(float(ratio.total)) if ratio.number else None


def group_advantages(rewards: Tensor) -> Tensor:
    """GRPO's advantages of a group: (r - mean r) / (std r + 1e-4); (G,) -> (G,)."""
    return (rewards - rewards.mean()) / (rewards.std() + SPREAD)


def json_values(values: Tensor) -> list[Any]:
    """Values of a tensor (T,) as stored in the file."""
    return [json_value(value) for value in values.tolist()]


def json_value(value: float) -> float | None:
    """Rounded to significant digits; None if it is not finite."""
    if isinstance(value, bool):
        return value
    return round(value, DIGITS) if isfinite(value) else None
