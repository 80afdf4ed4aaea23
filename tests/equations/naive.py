"""The method in plain loops, one token at a time: the truth that `vgpo.equations` is tested against."""

from fractions import Fraction
from math import floor, fsum

import torch
from torch import Tensor

from vgpo import ReweightedAdvantages, VGPOSettings

EPSILON = 1e-8


def visual_prototype(hidden: Tensor, visual_mask: Tensor) -> Tensor:
    """Equation (2), mean pooling. (B, L, D), bool (B, L) -> (B, D)."""
    prototypes = []
    for states, mask in zip(hidden, visual_mask, strict=True):
        total, count = torch.zeros_like(states[0]), 0
        for state, is_visual in zip(states, mask.tolist(), strict=True):
            if is_visual:
                total, count = total + state, count + 1
        prototypes.append(total / max(1, count))
    return torch.stack(prototypes)


def visual_similarity(response_hidden: Tensor, prototype: Tensor) -> Tensor:
    """Equation (3). (B, T, D), (B, D) -> (B, T)."""
    rows = []
    for states, mean in zip(response_hidden, prototype, strict=True):
        rows.append([float(state @ mean / (state.norm() * mean.norm() + EPSILON)) for state in states])
    return torch.tensor(rows, dtype=response_hidden.dtype)


def reweight_advantages(
    advantages: Tensor,
    similarity: Tensor,
    response_mask: Tensor,
    group_ids: Tensor,
    settings: VGPOSettings,
    visual_rows: Tensor | None = None,
) -> ReweightedAdvantages:
    """Equations (4) to (12) in float64, on Python numbers."""
    B, T = similarity.shape
    has_image = [True] * B if visual_rows is None else visual_rows.tolist()
    places = [
        [t for t in range(T) if response_mask[i, t] and has_image[i]] for i in range(B)
    ]  # where the tokens that count stand
    cosines = [[float(similarity[i, t]) for t in places[i]] for i in range(B)]
    smallest = min([0.0, *(cosine for row in cosines for cosine in row)])
    focus = [[focus_score(cosine, smallest, settings) for cosine in row] for row in cosines]
    gate = [visual_gate(row, settings) for row in focus]
    weight = [compensated_weight(rho, g, settings) for rho, g in zip(focus, gate, strict=True)]
    normalised = [min_max(row) for row in weight]
    psi = [deviation(row) for row in normalised]
    scored = normalised if settings.preset == "released" else weight
    scores = {i: fsum(scored[i]) for i in range(B) if places[i]}
    if settings.rollout_score == "mean":
        scores = {i: total / len(places[i]) for i, total in scores.items()}
    phi = rollout_deviations(scores, group_ids.tolist())

    advantage = [[float(advantages[i])] * T for i in range(B)]
    token_factor = [[1.0] * T for _ in range(B)]
    rollout_factor = [1.0] * B
    focus_out = [[0.0] * T for _ in range(B)]
    gate_out = [[False] * T for _ in range(B)]
    for i in scores:
        rollout_factor[i] = clamp(1 + phi[i], 0.9, 2, settings) if settings.inter else 1.0
        for k, t in enumerate(places[i]):
            token_factor[i][t] = clamp(1 + psi[i][k], 0.1, 2, settings) if settings.intra else 1.0
            advantage[i][t] = float(advantages[i]) * token_factor[i][t] * rollout_factor[i]
            focus_out[i][t] = focus[i][k]
            gate_out[i][t] = gate[i][k]
    return ReweightedAdvantages(
        advantages=torch.tensor(advantage, dtype=torch.float64),
        token_factor=torch.tensor(token_factor, dtype=torch.float64),
        rollout_factor=torch.tensor(rollout_factor, dtype=torch.float64),
        focus=torch.tensor(focus_out, dtype=torch.float64),
        gate=torch.tensor(gate_out),
    )


def focus_score(cosine: float, smallest: float, settings: VGPOSettings) -> float:
    """Equation (4), or the released offset."""
    return cosine - smallest if settings.preset == "released" else (cosine + 1) / 2


def visual_gate(focus: list[float], settings: VGPOSettings) -> list[bool]:
    """Equation (6) for one rollout; `str` reads a share as it was written, 0.2 as 1 / 5."""
    length = len(focus)
    start = (1 - Fraction(str(settings.tail_ratio))) * length
    tail = [focus[t - 1] for t in range(1, length + 1) if t > start]
    if not tail:
        return []
    count = max(1, floor(Fraction(str(settings.gate_ratio)) * len(tail)))
    threshold = sorted(tail, reverse=True)[count - 1]
    return [t > start and focus[t - 1] >= threshold for t in range(1, length + 1)]


def compensated_weight(focus: list[float], gate: list[bool], settings: VGPOSettings) -> list[float]:
    """Equation (5) for one rollout."""
    weights = []
    for t, (rho, passed) in enumerate(zip(focus, gate, strict=True), start=1):
        growth = schedule(t, len(focus), settings)
        weights.append(rho * (1 + settings.strength * growth) if passed else rho)
    return weights


def schedule(t: int, length: int, settings: VGPOSettings) -> float:
    """What stands for t / T_i in equation (5)."""
    progress = Fraction(t, length)
    if settings.preset == "released":
        progress = Fraction(t - 1, length - 1) if length > 1 else Fraction(0)
    if settings.schedule == "step":
        return 1.0 if progress >= Fraction(str(settings.step)) else 0.0
    return float(progress) ** (settings.exponent if settings.schedule == "exponential" else 1)


def min_max(values: list[float]) -> list[float]:
    """Equations (7) and (10)."""
    return [(value - min(values)) / (max(values) - min(values) + EPSILON) for value in values]


def deviation(values: list[float]) -> list[float]:
    """Equations (8) and (11)."""
    return [value - fsum(values) / len(values) for value in values]


def rollout_deviations(scores: dict[int, float], group_ids: list[int]) -> dict[int, float]:
    """Equations (10) and (11) for the rows that have a score, by row."""
    phi = {}
    for group in set(group_ids):
        members = [i for i in scores if group_ids[i] == group]
        values = min_max([scores[i] for i in members])
        phi |= dict(zip(members, deviation(values), strict=True))
    return phi


def clamp(factor: float, low: float, high: float, settings: VGPOSettings) -> float:
    """The released preset bounds its factors."""
    return min(max(factor, low), high) if settings.preset == "released" else factor
