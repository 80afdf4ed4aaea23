"""VGPO with strength and compensation measured in the rollouts instead of fixed as in the paper.

The paper names adapting the expected focus to the task and the step as future work. Three measurements do this:

1. *Earned* (`earned`): how strongly tokens and rollouts are reweighted follows from whether rollouts with more focus
have been correct more often within their group, per stratum of the data.
2. *Forgetting* (`forgetting`): how strongly late tokens are compensated follows from how far the focus of the group
   has decayed along its responses.
3. *Blind gate* (`blind_gate`), a control: the reweighting of a group is reduced by the share of correct answers to
its prompt without the images.

The factors are 1 + lambda psi and 1 + lambda phi with the score of a rollout as the mean of its weights. With
lambda = 1 and forgetting "given" this is VGPO with `rollout_score="mean"`, with lambda = 0 it is the base algorithm,
bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vgpo.equations import (
    FocusState,
    VGPOSettings,
    focus_score,
    group_index,
    progress,
    reweight_advantages,
)
from vgpo.metric_names import ADAPTIVE_COMPENSATION, ADAPTIVE_CORRELATION, ADAPTIVE_STRENGTH, of_stratum
from vgpo.ratio import Ratio
from vgpo.settings_checks import check_choice, check_number, check_used, reject_unused
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, broadcast_advantages
from vgpo.shaping.vgpo import SIGNAL_OF, shaped_by, similarity_of

Forgetting = Literal["given", "slope", "curve"]

NUM_BINS = 10  # of a response, in which its focus is averaged
_ROUNDING = 16  # units in the last place by which equal values may differ
# Differences of advantages up to this are rounding: equal rewards, scaled by GRPO's std + 1e-4, have about 6e-4.
_EQUAL_ADVANTAGES = 1e-3


@dataclass(frozen=True, kw_only=True)
class AdaptiveSettings:
    """Settings of the measurements, and the settings of VGPO that still apply.

    Raises:
        ValueError: for a value out of its range, and for one that would have no effect.
    """

    strength: float = VGPOSettings.strength
    """beta >= 0, strength of the compensation where the focus has decayed by `full_slope` or more."""
    tail_ratio: float = VGPOSettings.tail_ratio
    """gamma in (0, 1], as in VGPO."""
    gate_ratio: float = VGPOSettings.gate_ratio
    """kappa in (0, 1], as in VGPO."""
    intra: bool = VGPOSettings.intra
    """Reweight the tokens of a rollout (psi)."""
    inter: bool = VGPOSettings.inter
    """Reweight the rollouts of a group (phi)."""
    focus_state: FocusState = VGPOSettings.focus_state
    """As in VGPO."""
    earned: bool = True
    """Earn the strength lambda of the reweighting; False for lambda = 1."""
    forgetting: Forgetting = "slope"
    """Compensation late in a response: ``slope`` scales beta t / T by the measured decay, ``curve`` replaces t / T by
    the measured loss at each place, ``given`` takes beta t / T as it is."""
    signed: bool = False
    """For negative advantages, use 1 - lambda psi and 1 - lambda phi: wrong rollouts are penalised where focus is low,
    while VGPO penalises them where it is high."""
    blind_gate: bool = False
    """Reduce the reweighting of prompts that are answered correctly without their images."""
    blind_rollouts: int = 2
    """K >= 1, rollouts without the images for each prompt, sampled once and kept."""
    correlation_rate: float = 0.1
    """eta in (0, 1], weight of a batch in the running correlation."""
    full_correlation: float = 0.2
    """Running correlation in (0, 1] from which lambda is 1."""
    full_slope: float = 0.55
    """Decay in (0, 1] from which the compensation is beta: that of a focus that falls linearly with a late/early ratio
    of 0.68, the paper's base model."""
    stratum_column: str | None = None
    """Column of the dataset with a separate strength per value; None for a single strength."""

    def __post_init__(self) -> None:
        self.vgpo  # noqa: B018  # checks the shared ones
        for name in ("earned", "signed", "blind_gate"):
            check_choice(name, vars(self)[name], (True, False))
        check_choice("forgetting", self.forgetting, get_args(Forgetting))
        check_number("correlation_rate", self.correlation_rate, low=0, high=1)
        check_number("full_correlation", self.full_correlation, low=0, high=1)
        check_number("full_slope", self.full_slope, low=0, high=1)
        if type(self.blind_rollouts) is not int or self.blind_rollouts < 1:
            raise ValueError(f"blind_rollouts is {self.blind_rollouts!r}, expected a whole number of at least 1.")
        for name in ("forgetting", "signed", "blind_gate", "stratum_column"):
            check_used(self, name, intra=True, inter=True)
        for name in ("correlation_rate", "full_correlation", "stratum_column"):
            check_used(self, name, earned=True)
        check_used(self, "blind_rollouts", blind_gate=True)
        if self.forgetting == "given":
            check_used(self, "full_slope", forgetting="slope")
        if self.strength == 0:
            reject_unused(self, ["forgetting", "full_slope"], without="a compensation", fix="strength above 0")

    @property
    def vgpo(self) -> VGPOSettings:
        """The settings of the equations."""
        shared = ("strength", "tail_ratio", "gate_ratio", "intra", "inter", "focus_state")
        values = {name: vars(self)[name] for name in shared}
        if self.inter:
            values["rollout_score"] = "mean"
        return VGPOSettings(**values)


@torch.no_grad()
def group_correlation(
    mean_focus: Tensor, advantages: Tensor, takes_part: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """Correlation of focus and reward within each group: c_g = mean_i z(m_i) z(A_i), z over the group's rollouts.

    z of an advantage is z of its reward, as advantages are rewards that were shifted and scaled within their group.

    Args:
        mean_focus: m, mean visual focus of each rollout (B,).
        advantages: group-relative (B,).
        takes_part: rows that count, bool (B,).
        group: of `group_index`, int64 (B,).

    Returns:
        c by group number, (B,) in [-1, 1], 0 where m does not vary; and whether the rewards of the group vary, bool
        (B,). Numbers without a group have 0 and False.
    """
    focus, focus_varies = _centred(mean_focus, takes_part, group, _ROUNDING * torch.finfo(mean_focus.dtype).eps)
    reward, reward_varies = _centred(advantages, takes_part, group, _EQUAL_ADVANTAGES)
    scale = (_sum_by(focus * focus, group) * _sum_by(reward * reward, group)).sqrt()
    both = focus_varies & reward_varies
    correlation = torch.where(both, _sum_by(focus * reward, group) / torch.where(both, scale, 1), 0)
    return correlation.clamp(-1, 1), reward_varies


def _centred(values: Tensor, takes_part: Tensor, group: Tensor, equal: float) -> tuple[Tensor, Tensor]:
    """Values minus their group's mean (B,), 0 for excluded rows; and whether the group's values differ by more than
    `equal`, bool by group number (B,)."""
    inf = float("inf")
    low = torch.full_like(values, inf).scatter_reduce(0, group, torch.where(takes_part, values, inf), "amin")
    high = torch.full_like(values, -inf).scatter_reduce(0, group, torch.where(takes_part, values, -inf), "amax")
    count = _sum_by(takes_part.to(values.dtype), group).clamp(min=1)
    mean = _sum_by(torch.where(takes_part, values, 0), group) / count
    return torch.where(takes_part, values - mean[group], 0), high - low > equal


def _sum_by(values: Tensor, number: Tensor) -> Tensor:
    return torch.zeros_like(values).index_add(0, number, values)


@torch.no_grad()
def focus_curve(similarity: Tensor, counted: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Mean focus of each group by place in its responses: e_g(b) = mean of S_it - min S over tokens with t / T_i in b.

    The smallest S of the group is subtracted, so that ratios are meaningful: (S + 1) / 2 hides a decay near 1.

    Args:
        similarity: cosines S (B, T), float32 or better.
        counted: bool (B, T).
        group: int64 (B,).

    Returns:
        e by group number (B, 10), 0 in an empty bin; and whether a bin has a token, bool (B, 10).
    """
    bins = response_bins(counted)
    inf = float("inf")
    lowest = torch.where(counted, similarity, inf).amin(1)  # (B,)
    lowest = torch.full_like(lowest, inf).scatter_reduce(0, group, lowest, "amin")[group]
    height = torch.where(counted, similarity - lowest[:, None], 0)
    place = (group[:, None] * NUM_BINS + bins).flatten()
    shape = len(similarity), NUM_BINS
    total = torch.zeros_like(similarity[:, 0]).repeat(NUM_BINS).index_add(0, place, height.flatten())
    count = torch.zeros_like(total).index_add(0, place, counted.to(total.dtype).flatten())
    return (total / count.clamp(min=1)).view(shape), (count > 0).view(shape)


def response_bins(counted: Tensor) -> Tensor:
    """The bin of t / T_i in ten of (0, 1], from 0; bool (B, T) -> int64 (B, T), 0 where a token does not count."""
    position, length = counted.cumsum(1), counted.sum(1, keepdim=True).clamp(min=1)
    return ((position * NUM_BINS + length - 1) // length - 1).clamp(min=0)


class Line(NamedTuple):
    """Lines e(u) = a (1 - f u), by group number (G,); without a line, `start` is 1 and `decay` 0."""

    start: Tensor
    """a > 0"""
    decay: Tensor
    """f"""
    exists: Tensor
    """bool"""


@torch.no_grad()
def fitted_line(curve: Tensor, filled: Tensor) -> Line:
    """The line through the filled bins by least squares, u at the middle of each bin.

    There is no line with fewer than two filled bins, or if a is not above 0 by more than rounding.

    Args:
        curve: of `focus_curve`, (G, 10).
        filled: bool (G, 10).
    """
    middle = (torch.arange(NUM_BINS, device=curve.device, dtype=curve.dtype) + 0.5) / NUM_BINS
    number = filled.sum(1).to(curve.dtype)
    mean_u = (filled * middle).sum(1) / number.clamp(min=1)
    mean_e = torch.where(filled, curve, 0).sum(1) / number.clamp(min=1)
    offset = torch.where(filled, middle - mean_u[:, None], 0)
    has_two = number >= 2
    slope = (offset * curve).sum(1) / torch.where(has_two, (offset * offset).sum(1), 1)
    start = mean_e - slope * mean_u
    exists = has_two & (start > _ROUNDING * torch.finfo(curve.dtype).eps)
    start = torch.where(exists, start, 1)
    return Line(start, torch.where(exists, -slope / start, 0), exists)


@torch.no_grad()
def measured_share(
    similarity: Tensor, counted: Tensor, group: Tensor, forgetting: Forgetting, full_slope: float
) -> Tensor:
    """Share of the compensation along a response, in [0, 1]; (B, T), float32 or better.

    ``slope``: clip(f_g / F, 0, 1), equal at all tokens of a group. ``curve``: d_g(b) = clip((1 - e_g(b) / a_g) / F, 0,
    1) in the bin of the token. 0 where the group has no line.
    """
    curve, filled = focus_curve(similarity, counted, group)
    line = fitted_line(curve, filled)
    if forgetting == "slope":
        return (line.decay / full_slope).clamp(0, 1)[group, None].expand(similarity.shape)
    loss = 1 - curve / line.start[:, None]
    share = torch.where(line.exists[:, None], (loss / full_slope).clamp(0, 1), 0)  # (G, 10)
    return share[group].gather(1, response_bins(counted))


def blind_strength(text_only_accuracy: Tensor, chance: Tensor) -> Tensor:
    """lambda_g = clip((1 - k_g / K) / (1 - p_chance), 0, 1): 0 if the prompt is always answered correctly without its
    images.

    (B,), (B,) in [0, 1) -> (B,).
    """
    return ((1 - text_only_accuracy) / (1 - chance)).clamp(0, 1)


class AdaptiveShaping(Shaping):
    """VGPO with a measured strength. Its state is the running correlation of each stratum."""

    Settings = AdaptiveSettings

    def __init__(self, settings: AdaptiveSettings) -> None:
        self.settings = settings
        self._correlation: Tensor | None = None  # (strata,), on the device of the signals
        self._loaded: dict[str, float] = {}

    @property
    def signals(self) -> frozenset[str]:
        settings = self.settings
        if not (settings.intra or settings.inter):
            return frozenset()
        names = {SIGNAL_OF[settings.focus_state]}
        names |= {"text_only_accuracy", "chance"} if settings.blind_gate else set()
        return frozenset(names | ({"stratum"} if settings.stratum_column else set()))

    @property
    def scope(self) -> Scope:
        if not self.signals:
            return "rollout"
        if self.settings.earned:
            return "batch"
        return "group" if self.settings.inter or self.settings.forgetting != "given" else "rollout"

    @property
    def stratum_column(self) -> str | None:
        return self.settings.stratum_column

    @property
    def blind_rollouts(self) -> int:
        return self.settings.blind_rollouts if self.settings.blind_gate else 0

    def state_dict(self) -> dict[str, Any]:
        if not (self.signals and self.settings.earned):
            return {}
        if self._correlation is None:
            return {"correlation": dict(self._loaded)}
        return {"correlation": dict(zip(self.strata, self._correlation.tolist(), strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded, self._correlation = dict(state.get("correlation", {})), None

    @torch.no_grad()
    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        if not self.signals:
            return broadcast_advantages(advantages, signals)
        settings, counted = self.settings, signals.scored_mask
        similarity = similarity_of(signals, settings.focus_state)
        dtype = torch.promote_types(torch.promote_types(advantages.dtype, similarity.dtype), torch.float32)
        similarity, group = similarity.to(dtype), group_index(signals.group_ids)
        statistics: dict[str, Ratio] = {}
        strength = torch.ones_like(similarity[:, 0])
        if settings.earned:
            stratum = signals.stratum if settings.stratum_column else torch.zeros_like(group)
            assert stratum is not None
            strength = self._earned_strength(advantages.to(dtype), similarity, counted, group, stratum)
            statistics |= self._earned_statistics()
        if settings.blind_gate:
            assert signals.text_only_accuracy is not None
            assert signals.chance is not None
            strength = strength * blind_strength(signals.text_only_accuracy, signals.chance).to(dtype)
        growth = progress(counted.cumsum(1), counted.sum(1, keepdim=True), settings.vgpo, dtype)
        if settings.forgetting != "given":
            share = measured_share(similarity, counted, group, settings.forgetting, settings.full_slope)
            statistics[ADAPTIVE_COMPENSATION] = Ratio((share * counted).sum(), counted.sum())
            growth = share if settings.forgetting == "curve" else growth * share
        reweighted = reweight_advantages(
            advantages,
            similarity,
            signals.response_mask,
            signals.group_ids,
            settings.vgpo,
            signals.visual_rows,
            growth=growth,
            deviation_strength=torch.where(advantages < 0, -strength, strength) if settings.signed else strength,
        )
        shaped = shaped_by(reweighted, signals)
        return Shaped(
            shaped.advantages, {**shaped.diagnostics, "strength": strength}, {**shaped.statistics, **statistics}
        )

    def _earned_strength(
        self, advantages: Tensor, similarity: Tensor, counted: Tensor, group: Tensor, stratum: Tensor
    ) -> Tensor:
        """lambda_k = clip(C_k / c, 0, 1) of each row (B,), once C_k <- (1 - eta) C_k + eta mean_g c_g of the batch."""
        focus = focus_score(similarity, counted, "paper")
        length = counted.sum(1)
        mean_focus = focus.sum(1) / length.clamp(min=1)
        found, varies = group_correlation(mean_focus, advantages, length > 0, group)
        if self._correlation is None:
            start = [self._loaded.get(name, 0.0) for name in self.strata]
            self._correlation = torch.tensor(start, dtype=found.dtype, device=found.device)
        of_group = torch.zeros_like(group).scatter(0, group, stratum)  # rows of a group are of one stratum
        number = torch.zeros_like(self._correlation).index_add(0, of_group, varies.to(found.dtype))
        total = torch.zeros_like(self._correlation).index_add(0, of_group, torch.where(varies, found, 0))
        rate = self.settings.correlation_rate
        moved = (1 - rate) * self._correlation + rate * total / number.clamp(min=1)
        self._correlation = torch.where(number > 0, moved, self._correlation)
        return self._strength_of_strata(self._correlation)[stratum]

    def _strength_of_strata(self, correlation: Tensor) -> Tensor:
        """lambda_k = clip(C_k / c, 0, 1). (strata,) -> (strata,)."""
        return (correlation / self.settings.full_correlation).clamp(0, 1)

    def _earned_statistics(self) -> dict[str, Ratio]:
        """Running correlation and strength, of each stratum where a column names them."""
        assert self._correlation is not None
        one = torch.ones_like(self._correlation[0])
        found = {}
        strengths = self._strength_of_strata(self._correlation)
        for name, correlation, strength in zip(self.strata, self._correlation, strengths, strict=True):
            suffix = name if self.settings.stratum_column else None
            found[of_stratum(ADAPTIVE_CORRELATION, suffix)] = Ratio(correlation, one)
            found[of_stratum(ADAPTIVE_STRENGTH, suffix)] = Ratio(strength, one)
        return found
