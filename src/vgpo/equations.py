"""Visually-Guided Policy Optimization as pure tensor functions, one per equation of arXiv 2604.09349.

Axes: B rollouts, T response tokens, L tokens of a sequence, D hidden size.

Where the paper leaves details open, this implementation defines:

1. A token *counts* if the policy sampled it and its prompt has a visual token. All others (padding, tool output,
truncated and masked tokens, rows without an image) are excluded from every position, length, minimum, maximum, mean
and sum, whatever their values, NaN included. Their factors are exactly 1.
2. The top kappa share of n tail tokens is max(1, floor(kappa n)) tokens; ties with the last of them are included.
3. Shares are interpreted as the exact fraction that was written, so that 0.2 of 15 tokens are 3 tokens.
4. Scores of a group that differ by no more than the rounding of a sum are equal, hence phi = 0: min-max
   scaling would blow the rounding up to the full range.
5. A prompt without a visual token has a zero prototype, hence similarity 0.
6. All factors are computed in float32, or in float64 where an input is float64.

No function reads a tensor's value on the host or loops over rows or tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from vgpo.settings_checks import check_choice, check_number, check_used

Schedule = Literal["linear", "exponential", "step"]
Preset = Literal["paper", "released"]
RolloutScore = Literal["sum", "mean"]
FocusState = Literal["reading", "predicting"]

_EPSILON = 1e-8
_TOKEN_FACTOR_RANGE = (0.1, 2.0)  # of the `released` preset
_ROLLOUT_FACTOR_RANGE = (0.9, 2.0)  # of the `released` preset
_SUM_ROUNDING = 16  # units in the last place by which equal sums may differ
# Hidden states are processed in blocks that stay in cache between two operations.
_BLOCK_ELEMENTS_CPU = 2**20
_BLOCK_ELEMENTS = 2**23


@dataclass(frozen=True, kw_only=True)
class VGPOSettings:
    """What VGPO adds to its base algorithm; the defaults are the paper's.

    Raises:
        ValueError: for a value out of its range, or one that would have no effect.
    """

    strength: float = 0.3
    """beta >= 0, strength of the visual attention compensation; 0 removes it."""
    tail_ratio: float = 0.5
    """gamma in (0, 1], share of the response, counted from its end, where compensation may act."""
    gate_ratio: float = 0.2
    """kappa in (0, 1], share of the tail's tokens, the most visual ones, that are compensated."""
    schedule: Schedule = "linear"
    """Schedule of the compensation over the response: linear, exponential or step."""
    exponent: float = 2.0
    """p > 0 of the exponential schedule, progress ** p."""
    step: float = 0.5
    """Progress in (0, 1] from which the step schedule compensates in full; before it, not at all."""
    intra: bool = True
    """Reweight the tokens of a rollout (psi)."""
    inter: bool = True
    """Reweight the rollouts of a group (phi)."""
    rollout_score: RolloutScore = "sum"
    """How a rollout's weights are aggregated to its score s: ``sum``, or ``mean``, which does not grow with length."""
    focus_state: FocusState = "reading"
    """The state whose similarity is the focus of a token: ``reading``, h_t after reading it as in the paper, or
    ``predicting``, h_{t-1} of the token before it or of the last prompt token."""
    preset: Preset = "paper"
    """``paper``, or ``released``: the variant in the authors' code.

    Focus is S - min(0, smallest S of the batch), progress (t - 1) / (T - 1), the rollout score sums the
    normalised weights, and the factors are clamped to [0.1, 2] (token) and [0.9, 2] (rollout). The smallest S makes
    the focus depend on the batch: pass complete rollout batches.
    """

    def __post_init__(self) -> None:
        check_number("strength", self.strength, low=0, low_included=True)
        check_number("tail_ratio", self.tail_ratio, low=0, high=1)
        check_number("gate_ratio", self.gate_ratio, low=0, high=1)
        check_number("exponent", self.exponent, low=0)
        check_number("step", self.step, low=0, high=1)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("preset", self.preset, get_args(Preset))
        check_choice("intra", self.intra, (True, False))
        check_choice("inter", self.inter, (True, False))
        check_choice("rollout_score", self.rollout_score, get_args(RolloutScore))
        check_choice("focus_state", self.focus_state, get_args(FocusState))
        check_used(self, "strength", intra=True, inter=True)
        check_used(self, "schedule", intra=True, inter=True)
        check_used(self, "exponent", schedule="exponential")
        check_used(self, "step", schedule="step")
        check_used(self, "rollout_score", inter=True)
        check_used(self, "focus_state", intra=True, inter=True)


@dataclass(frozen=True)
class ReweightedAdvantages:
    """Per-token advantages and their factors; all detached."""

    advantages: Tensor
    """(B, T) A^V of equation (12); the plain A_i on tokens that the policy did not sample."""
    token_factor: Tensor
    """(B, T) 1 + psi of equation (8); exactly 1 where a token does not count."""
    rollout_factor: Tensor
    """(B,) 1 + phi of equation (11); exactly 1 where no token of the row counts."""
    focus: Tensor
    """(B, T) rho of equation (4), in [0, 1] under the paper's preset; 0 where a token does not count."""
    gate: Tensor
    """(B, T) bool, G of equation (6); False where a token does not count."""


@torch.no_grad()
def visual_prototype(hidden: Tensor, visual_mask: Tensor) -> Tensor:
    """Mean hidden state of each row's visual tokens: mu_v = sum_k h_k / V. Equation (2), mean pooling.

    Args:
        hidden: (B, L, D) last-layer states after the final norm. Only visual positions are read: all others may be
        NaN.
        visual_mask: bool (B, L), True at the visual tokens of the row's prompt.

    Returns:
        (B, D) in float32 or better; zeros where a row has no visual token.

    Raises:
        ValueError: for a wrong shape or dtype.
    """
    _check_shape("hidden", hidden, ("B", "L", "D"))
    _check_shape("visual_mask", visual_mask, ("B", "L"), hidden.shape[:2])
    _check_bool("visual_mask", visual_mask)
    return _visual_mean(hidden, visual_mask, directions=False)


@torch.no_grad()
def visual_similarity(response_hidden: Tensor, prototype: Tensor) -> Tensor:
    """Cosine of each response token with its row's prototype: S = h mu / (|h| |mu| + eps). Equation (3).

    Args:
        response_hidden: (B, T, D) states at the response tokens' own positions.
        prototype: (B, D) from `visual_prototype`.

    Returns:
        (B, T) in [-1, 1], float32 or better; 0 if the prototype is zero, NaN only if a state is not finite.

    Raises:
        ValueError: for a wrong shape.
    """
    _check_shape("response_hidden", response_hidden, ("B", "T", "D"))
    B, T, D = response_hidden.shape
    _check_shape("prototype", prototype, ("B", "D"), (B, D))
    dtype = torch.promote_types(torch.promote_types(response_hidden.dtype, prototype.dtype), torch.float32)
    row = prototype.to(dtype)[:, None]  # (B, 1, D)
    dot = response_hidden.new_empty(B, T, dtype=dtype)
    norm = torch.empty_like(dot)
    with _without_autocast(response_hidden.device):
        for block in _token_blocks(response_hidden):
            states = response_hidden[:, block].to(dtype)
            # This order of the product reads the states at full speed: h mu takes twice as long as mu^T h^T.
            dot[:, block] = torch.bmm(row, states.transpose(1, 2))[:, 0]
            norm[:, block] = torch.linalg.vector_norm(states, dim=-1)
    scale = norm * torch.linalg.vector_norm(row, dim=-1) + _EPSILON
    return (dot / scale).clamp(min=-1, max=1)


@torch.no_grad()
def mean_visual_direction(hidden: Tensor, visual_mask: Tensor) -> Tensor:
    """Mean direction of each row's visual tokens: m = sum_k h_k / |h_k| / V, of arXiv 2603.22847.

    Args:
        hidden: (B, L, D); positions that are not visual may be NaN.
        visual_mask: bool (B, L).

    Returns:
        (B, D) in float32 or better; zeros where a row has no visual token.
    """
    return _visual_mean(hidden, visual_mask, directions=True)


@torch.no_grad()
def mean_visual_cosine(hidden: Tensor, mean_direction: Tensor) -> Tensor:
    """Mean cosine of each token with the visual tokens of its row: VS = sum_k cos(h, h_k) / V, of arXiv 2603.22847.

    Args:
        hidden: (B, T, D).
        mean_direction: (B, D) from `mean_visual_direction`.

    Returns:
        (B, T) in [-1, 1], float32 or better; 0 where a row has no visual token.
    """
    # sum_k cos(h, h_k) / V = h m / |h| = cos(h, m) |m|.
    length = torch.linalg.vector_norm(mean_direction, dim=-1, keepdim=True).clamp(max=1)  # (B, 1)
    return visual_similarity(hidden, mean_direction) * length


@torch.no_grad()
def reweight_advantages(
    advantages: Tensor,
    similarity: Tensor,
    response_mask: Tensor,
    group_ids: Tensor,
    settings: VGPOSettings,
    visual_rows: Tensor | None = None,
    *,
    growth: Tensor | None = None,
    deviation_strength: Tensor | None = None,
) -> ReweightedAdvantages:
    """Turn one advantage per rollout into one per token: equations (4) to (12) of arXiv 2604.09349.

    A^V_it = A_i (1 + psi_it) (1 + phi_i). All rows of a group must be in the batch, in any order; other rows do not
    change the result (but see `VGPOSettings.preset`).

    Args:
        advantages: (B,) group-relative advantages A_i.
        similarity: (B, T) cosines from `visual_similarity`; read only where a token counts.
        response_mask: bool (B, T), True at tokens that the policy sampled. Gaps are allowed.
        group_ids: integer (B,), equal for the rollouts of one prompt.
        settings: the method's settings.
        visual_rows: bool (B,), False where the prompt has no visual token; None if every prompt has one.
        growth: (B, T), replaces the scheduled progress in equation (5).
        deviation_strength: (B,) lambda in [-1, 1]: the factors are 1 + lambda psi and 1 + lambda phi. None for 1.

    Raises:
        ValueError: for a wrong shape or dtype.
    """
    _check_inputs(advantages, similarity, response_mask, group_ids, visual_rows)
    dtype = torch.promote_types(torch.promote_types(advantages.dtype, similarity.dtype), torch.float32)
    counted = response_mask if visual_rows is None else response_mask & visual_rows[:, None]
    position = counted.cumsum(dim=1)  # (B, T), 1 ... T_i at the tokens that count
    length = counted.sum(dim=1, keepdim=True)  # (B, 1)
    released = settings.preset == "released"

    focus = focus_score(similarity.to(dtype), counted, settings.preset)
    tail = tail_tokens(position, length, settings.tail_ratio) & counted
    gate = visual_gate(focus, tail, settings.gate_ratio)
    if growth is None:
        growth = progress(position, length, settings, dtype)
    weight = compensated_weight(focus, gate, growth, settings.strength)

    normalised = normalised_weight(weight, counted)
    token_factor = torch.ones_like(focus)
    strength = torch.ones_like(token_factor[:, 0]) if deviation_strength is None else deviation_strength.to(dtype)
    if settings.intra:
        token_factor = 1 + strength[:, None] * token_deviation(normalised, counted)
    rollout_factor = torch.ones_like(focus[:, 0])
    if settings.inter:
        group = group_index(group_ids)
        takes_part = length[:, 0] > 0
        score = rollout_score(normalised if released else weight, length, settings.rollout_score)
        normalised_score = normalised_rollout_score(score, takes_part, group)
        rollout_factor = 1 + strength * rollout_deviation(normalised_score, takes_part, group)
    if released:
        token_factor = token_factor.clamp(*_TOKEN_FACTOR_RANGE)
        rollout_factor = rollout_factor.clamp(*_ROLLOUT_FACTOR_RANGE)
    return ReweightedAdvantages(
        advantages=visual_advantage(advantages, token_factor, rollout_factor, response_mask),
        token_factor=token_factor,
        rollout_factor=rollout_factor,
        focus=focus,
        gate=gate,
    )


def focus_score(similarity: Tensor, counted: Tensor, preset: Preset) -> Tensor:
    """Visual focus: rho = (S + 1) / 2, equation (4); S - min(0, smallest S of the batch) if ``released``.

    (B, T), bool (B, T) -> (B, T), 0 where a token does not count.
    """
    similarity = torch.where(counted, similarity, 0)
    if preset == "released":
        return torch.where(counted, similarity - similarity.amin().clamp(max=0), 0)
    return torch.where(counted, (similarity + 1) / 2, 0)


def tail_tokens(position: Tensor, length: Tensor, tail_ratio: float) -> Tensor:
    """The tail of each response: t > (1 - gamma) T_i, of equation (6). int (B, T), int (B, 1) -> bool (B, T)."""
    gamma = as_fraction(tail_ratio)
    return (length - position) * gamma.denominator < length * gamma.numerator


def visual_gate(focus: Tensor, tail: Tensor, gate_ratio: float) -> Tensor:
    """Gate of the most visual tail tokens: G = 1 if t is in the tail and rho_it >= the k-th largest rho there.

    k = max(1, floor(kappa n_tail)); ties are included. Equation (6). (B, T), bool (B, T) -> bool (B, T).
    """
    kappa = as_fraction(gate_ratio)
    num_tail = tail.sum(dim=1, keepdim=True)  # (B, 1)
    num_passed = (num_tail * kappa.numerator // kappa.denominator).clamp(min=1)
    ranked = torch.where(tail, focus, -inf).sort(dim=1, descending=True).values
    return tail & (focus >= ranked.gather(1, num_passed - 1))


def progress(position: Tensor, length: Tensor, settings: VGPOSettings, dtype: torch.dtype) -> Tensor:
    """Scheduled progress through the response, in [0, 1] at the tokens that count; t / T_i of equation (5).

    With x = t / T_i, or (t - 1) / (T_i - 1) in the released preset: x if linear, x ** exponent if
    exponential, and 1 from x >= step on, else 0, if step. int (B, T), int (B, 1) -> (B, T).
    """
    if settings.preset == "released":
        position, length = (position - 1).clamp(min=0), length - 1
    length = length.clamp(min=1)
    if settings.schedule == "step":
        step = as_fraction(settings.step)
        return (position * step.denominator >= length * step.numerator).to(dtype)
    linear = position.to(dtype) / length.to(dtype)
    return linear if settings.schedule == "linear" else linear**settings.exponent


def compensated_weight(focus: Tensor, gate: Tensor, growth: Tensor, strength: float) -> Tensor:
    """Visual attention compensation: w = rho (1 + G beta t / T_i). Equation (5). All (B, T)."""
    return focus * (1 + strength * growth * gate)


def normalised_weight(weight: Tensor, counted: Tensor) -> Tensor:
    """Min-max scaling per rollout: w^ = (w - min w) / (max w - min w + eps). Equation (7).

    (B, T), bool (B, T) -> (B, T), 0 where w is constant and where a token does not count.
    """
    low = torch.where(counted, weight, inf).amin(dim=1, keepdim=True)
    high = torch.where(counted, weight, -inf).amax(dim=1, keepdim=True)
    return torch.where(counted, (weight - low) / (high - low + _EPSILON), 0)


def token_deviation(normalised: Tensor, counted: Tensor) -> Tensor:
    """Deviation from the rollout's mean: psi = w^ - mean w^. Equation (8). (B, T), bool (B, T) -> (B, T)."""
    mean = normalised.sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(counted, normalised - mean, 0)


def rollout_score(weight: Tensor, length: Tensor, reduction: RolloutScore) -> Tensor:
    """Visual score of a rollout: s_i = sum_t w_it, equation (9), which the mean divides by T_i.

    (B, T), 0 off the counted tokens, int (B, 1) -> (B,).
    """
    total = weight.sum(dim=1)
    return total if reduction == "sum" else total / length[:, 0].clamp(min=1)


def group_index(group_ids: Tensor) -> Tensor:
    """Number the groups 0, 1, ... in the order of their ids. integer (B,) -> int64 (B,)."""
    ordered, order = group_ids.sort()
    number = torch.zeros_like(order)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(dim=0)
    return torch.empty_like(order).scatter(0, order, number)


def normalised_rollout_score(score: Tensor, takes_part: Tensor, group: Tensor) -> Tensor:
    """Min-max scaling over the group: s^ = (s - min s) / (max s - min s + eps). Equation (10).

    (B,), bool (B,), int64 (B,) -> (B,), 0 where a group's scores are equal and for excluded rows.
    """
    low = torch.full_like(score, inf).scatter_reduce(0, group, torch.where(takes_part, score, inf), "amin")
    high = torch.full_like(score, -inf).scatter_reduce(0, group, torch.where(takes_part, score, -inf), "amax")
    spread = (high - low)[group]
    differ = spread > _SUM_ROUNDING * torch.finfo(score.dtype).eps * high[group]
    return torch.where(takes_part & differ, (score - low[group]) / (spread + _EPSILON), 0)


def rollout_deviation(normalised: Tensor, takes_part: Tensor, group: Tensor) -> Tensor:
    """Deviation from the group's mean: phi = s^ - mean s^. Equation (11).

    (B,), bool (B,), int64 (B,) -> (B,), 0 for excluded rows.
    """
    total = torch.zeros_like(normalised).index_add(0, group, normalised)
    count = torch.zeros_like(normalised).index_add(0, group, takes_part.to(normalised.dtype))
    return torch.where(takes_part, normalised - (total / count.clamp(min=1))[group], 0)


def visual_advantage(
    advantages: Tensor, token_factor: Tensor, rollout_factor: Tensor, response_mask: Tensor
) -> Tensor:
    """Visually guided advantage: A^V = A_i (1 + psi) (1 + phi), A_i off the response. Equation (12).

    (B,), (B, T), (B,), bool (B, T) -> (B, T).
    """
    return advantages[:, None] * torch.where(response_mask, token_factor * rollout_factor[:, None], 1)


def _visual_mean(hidden: Tensor, visual_mask: Tensor, *, directions: bool) -> Tensor:
    """Mean state of each row's visual tokens, or of their directions h / |h|. (B, L, D), bool (B, L) -> (B, D)."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    # Bit mask instead of a product: 0 * NaN is NaN, and `where` takes three times as long.
    bits = visual_mask.to(integer).neg()[..., None]  # (B, L, 1)
    total = hidden.new_zeros(hidden.shape[0], hidden.shape[2], dtype=dtype)
    for block in _token_blocks(hidden):
        states = hidden[:, block].to(dtype)
        if directions:
            states = torch.nn.functional.normalize(states, dim=-1)
        total += (states.view(integer) & bits[:, block]).view(dtype).sum(dim=1)
    return total / visual_mask.sum(dim=1, keepdim=True).clamp(min=1)


def _token_blocks(hidden: Tensor) -> list[slice]:
    """Cut axis 1 of (B, L, D) into runs of tokens that stay in cache."""
    B, L, D = hidden.shape
    num_elements = _BLOCK_ELEMENTS_CPU if hidden.device.type == "cpu" else _BLOCK_ELEMENTS
    num_tokens = max(1, num_elements // max(1, B * D))
    return [slice(start, start + num_tokens) for start in range(0, L, num_tokens)]


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would round the matrix product to half precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def as_fraction(share: float) -> Fraction:
    """The nearest fraction to ``share`` with integers up to a million, never 0."""
    return max(Fraction(share).limit_denominator(1_000_000), Fraction(1, 1_000_000))


def _check_inputs(
    advantages: Tensor,
    similarity: Tensor,
    response_mask: Tensor,
    group_ids: Tensor,
    visual_rows: Tensor | None,
) -> None:
    _check_shape("similarity", similarity, ("B", "T"))
    B, T = similarity.shape
    if B == 0 or T == 0:
        raise ValueError(f"similarity has shape {(B, T)}, expected at least one row and one token.")
    _check_shape("advantages", advantages, ("B",), (B,))
    _check_shape("response_mask", response_mask, ("B", "T"), (B, T))
    _check_shape("group_ids", group_ids, ("B",), (B,))
    _check_bool("response_mask", response_mask)
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f"group_ids has dtype {group_ids.dtype}, expected integers: one id per prompt.")
    if visual_rows is not None:
        _check_shape("visual_rows", visual_rows, ("B",), (B,))
        _check_bool("visual_rows", visual_rows)


def _check_shape(name: str, tensor: Tensor, axes: tuple[str, ...], sizes: tuple[int, ...] | None = None) -> None:
    found = tuple(tensor.shape)
    if len(found) == len(axes) and (sizes is None or found == tuple(sizes)):
        return
    expected = f"({', '.join(axes)})" if sizes is None else f"({', '.join(axes)}) = {tuple(sizes)}"
    raise ValueError(f"{name} has shape {found}, expected {expected}.")


def _check_bool(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected torch.bool: pass {name}.bool().")
