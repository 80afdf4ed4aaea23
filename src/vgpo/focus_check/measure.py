"""The figures of a check, each with a bootstrap interval over questions."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vgpo.equations import focus_score
from vgpo.focus.statistics import NUM_DECILES, focus_by_decile, late_early_ratios
from vgpo.focus_check.records import (
    STATES,
    BlindFigures,
    Compensation,
    Counts,
    Figure,
    Measures,
    Outcomes,
    QuestionFigures,
    StateFigures,
    StratumFigures,
)
from vgpo.focus_check.sampling import Samples
from vgpo.resampling import percentile_interval, resamples
from vgpo.shaping.adaptive import AdaptiveSettings, blind_strength, fitted_line, focus_curve, group_correlation

MIN_FOR_INTERVAL = 2  # questions
QUARTILES = (0.25, 0.5, 0.75)

Array = np.ndarray
Statistic = Callable[[Array], Array]  # over the sample axis


def measure(samples: Samples) -> Measures:
    """All figures of sampled groups."""
    groups = Groups(samples)
    states = {state: FocusOfState(groups, state) for state in STATES}
    correct = groups.correct
    return Measures(
        counts=Counts(
            questions=groups.num_questions,
            without_image=samples.without_image,
            responses=len(correct),
            truncated=int(samples.truncated.sum()),
            mixed_groups=int(groups.is_mixed.sum()),
        ),
        accuracy=groups.mean_over(correct.astype(float)),
        mixed=mean_of(groups.is_mixed.astype(float)),
        length=groups.by_outcome(groups.length.astype(float)),
        length_correlation=mean_of(groups.correlation_with_correctness(groups.length.astype(float))),
        states={state: focus.figures() for state, focus in states.items()},
        blind=blind_figures(samples),
        strata={state: stratum_figures(samples, groups, focus) for state, focus in states.items()},
        questions=question_figures(samples, groups, states),
    )


class Groups:
    """Responses of a check as arrays: B responses to Q questions; missing group figures are NaN."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.question: Array = samples.question.numpy()
        self.correct: Array = samples.correct.numpy()
        self.length: Array = samples.mask.sum(1).numpy()
        self.num_questions = len(samples.rows)

    @cached_property
    def is_mixed(self) -> Array:
        """Questions with both correct and wrong answers, bool (Q,)."""
        right = self.sum_by_question(self.correct.astype(float))
        return (right > 0) & (right < self.sum_by_question(np.ones(len(self.correct))))

    def sum_by_question(self, values: Array) -> Array:
        """(B,) -> (Q,)"""
        return np.bincount(self.question, weights=values, minlength=self.num_questions)

    def mean_over(self, values: Array, where: Array | None = None) -> Figure:
        """Mean over responses, (B,), restricted to `where`; NaN values are ignored."""
        counts = ~np.isnan(values) if where is None else ~np.isnan(values) & where
        return ratio_of(self.sum_by_question(np.where(counts, values, 0)), self.sum_by_question(counts.astype(float)))

    def by_outcome(self, values: Array) -> Outcomes:
        """Mean over all, over correct and over wrong responses."""
        return Outcomes(
            all=self.mean_over(values),
            right=self.mean_over(values, self.correct),
            wrong=self.mean_over(values, ~self.correct),
        )

    def difference(self, values: Array) -> Array:
        """Mean over correct minus mean over wrong answers in each mixed group; (B,) -> (Q,), NaN elsewhere."""
        sides = []
        for where in (self.correct, ~self.correct):
            counts = ~np.isnan(values) & where
            number = self.sum_by_question(counts.astype(float))
            total = self.sum_by_question(np.where(counts, values, 0))
            sides.append(np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0))
        return np.where(self.is_mixed, sides[0] - sides[1], np.nan)

    def correlation(self, first: Array, second: Array) -> Array:
        """Correlation of two values within each mixed group; (B,), (B,) -> (Q,), NaN elsewhere."""
        takes_part = torch.ones(len(first), dtype=torch.bool)
        found, _ = group_correlation(
            torch.from_numpy(first), torch.from_numpy(second), takes_part, self.samples.question
        )
        return np.where(self.is_mixed, found[: self.num_questions].numpy(), np.nan)

    def correlation_with_correctness(self, values: Array) -> Array:
        return self.correlation(values, self.correct.astype(float))


class FocusOfState:
    """Figures from the similarities of one hidden state."""

    def __init__(self, groups: Groups, state: str) -> None:
        self.groups = groups
        mask, similarity = groups.samples.mask, groups.samples.similarity[state].double()
        rho = focus_score(similarity, mask, "paper").masked_fill(~mask, 0)
        self.mean: Array = (rho.sum(1) / mask.sum(1)).numpy()  # (B,)
        ratios, has_halves = late_early_ratios(rho, mask)
        self.late_early: Array = ratios.masked_fill(~has_halves, float("nan")).numpy()  # (B,)
        self.deciles: Array = decile_values(rho, mask)  # (B, 10)
        line = fitted_line(*focus_curve(similarity, mask, groups.samples.question))
        self.decay: Array = line.decay[: groups.num_questions].numpy()  # f (Q,), 0 if no line can be fitted
        self.correlation = groups.correlation_with_correctness(self.mean)  # (Q,)

    @property
    def compensation(self) -> Array:
        """clip(f / F, 0, 1) of each group (Q,)."""
        return np.clip(self.decay / AdaptiveSettings.full_slope, 0, 1)

    def figures(self) -> StateFigures:
        groups = self.groups
        correlation = mean_of(self.correlation)
        return StateFigures(
            focus=groups.by_outcome(self.mean),
            late_early=groups.by_outcome(self.late_early),
            late_early_difference=mean_of(groups.difference(self.late_early)),
            focus_difference=mean_of(groups.difference(self.mean)),
            correlation=correlation,
            correlation_at_equal_length=self._correlation_at_equal_length(),
            decay=median_of(self.decay),
            strength=strength_of(correlation),
            compensation=compensation_figures(self.compensation),
            right_by_decile=self._by_decile(groups.correct),
            wrong_by_decile=self._by_decile(~groups.correct),
        )

    def _by_decile(self, where: Array) -> list[Figure]:
        return [self.groups.mean_over(self.deciles[:, tenth], where) for tenth in range(NUM_DECILES)]

    def _correlation_at_equal_length(self) -> Figure:
        length = self.groups.length.astype(float)
        columns = (
            self.correlation,
            self.groups.correlation(self.mean, length),
            self.groups.correlation_with_correctness(length),
        )
        within = np.stack(columns, 1)[self.groups.is_mixed]  # (M, 3)
        return figure_of(within, lambda drawn: partial_correlation(drawn.mean(-2)))


def partial_correlation(correlations: Array) -> Array:
    """Partial correlation of x and y given z, from those of (x, y), (x, z) and (y, z); (..., 3) -> (...), 0 if z
    equals either.

    Means of within-group correlations are correlations of values standardised within their group.
    """
    xy, xz, yz = np.moveaxis(correlations, -1, 0)
    spread = np.sqrt(np.clip((1 - xz**2) * (1 - yz**2), 0, None))
    left = np.divide(xy - xz * yz, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    return np.clip(left, -1, 1)


def decile_values(rho: Tensor, mask: Tensor) -> Array:
    """Mean rho of each response in each tenth; (B, T) -> (B, 10), NaN in a tenth without a token."""
    tenths = [focus_by_decile(row[kept].tolist()) for row, kept in zip(rho, mask, strict=True)]
    return np.array(tenths, dtype=float)


def compensation_figures(share: Array) -> Compensation:
    """Figures of the compensation of each group, (Q,)."""
    return Compensation(
        mean=mean_of(share),
        at_zero=float((share == 0).mean()),
        at_full=float((share == 1).mean()),
        quartiles=[float(value) for value in np.quantile(share, QUARTILES)],
    )


def strength_of(correlation: Figure) -> Figure:
    """lambda = clip(c / full_correlation, 0, 1), the limit if the correlation stays constant."""

    def strength(value: float | None) -> float | None:
        return None if value is None else min(max(value / AdaptiveSettings.full_correlation, 0.0), 1.0)

    return Figure(
        value=strength(correlation.value),
        low=strength(correlation.low),
        high=strength(correlation.high),
        count=correlation.count,
    )


def blind_figures(samples: Samples) -> BlindFigures:
    right = samples.blind_correct.double().mean(1)  # (Q,)
    return BlindFigures(
        accuracy=mean_of(right.numpy()),
        always_right=mean_of((right == 1).double().numpy()),
        chance=mean_of(samples.chance.double().numpy()),
        strength=mean_of(blind_strength(right, samples.chance.double()).numpy()),
        multiple_choice=int((samples.chance > 0).sum()),
    )


def stratum_figures(samples: Samples, groups: Groups, focus: FocusOfState) -> list[StratumFigures]:
    """Figures of each stratum, sorted by name; empty without a stratum column."""
    found = []
    right = samples.blind_correct.double().mean(1)
    gate = blind_strength(right, samples.chance.double()).numpy()
    share_right = groups.sum_by_question(groups.correct.astype(float)) / np.bincount(groups.question)
    of_question = np.array(samples.strata or ())
    for name in sorted(set(samples.strata or ())):
        own = of_question == name
        correlation = mean_of(focus.correlation[own])
        found.append(
            StratumFigures(
                name=name,
                questions=int(own.sum()),
                mixed_groups=int(groups.is_mixed[own].sum()),
                accuracy=mean_of(share_right[own]),
                correlation=correlation,
                strength=strength_of(correlation),
                compensation=mean_of(focus.compensation[own]),
                blind_accuracy=mean_of(right.numpy()[own]),
                blind_strength=mean_of(gate[own]),
            )
        )
    return found


def question_figures(samples: Samples, groups: Groups, states: dict[str, FocusOfState]) -> list[QuestionFigures]:
    correct = groups.sum_by_question(groups.correct.astype(float))
    number = np.bincount(groups.question)
    difference = {state: groups.difference(focus.mean) for state, focus in states.items()}
    return [
        QuestionFigures(
            row=row,
            stratum=None if samples.strata is None else samples.strata[place],
            responses=int(number[place]),
            correct=int(correct[place]),
            blind_responses=samples.blind_correct.shape[1],
            blind_correct=int(samples.blind_correct[place].sum()),
            chance=float(samples.chance[place]),
            correlation={state: number_at(focus.correlation, place) for state, focus in states.items()},
            focus_difference={state: number_at(difference[state], place) for state in states},
            decay={state: float(focus.decay[place]) for state, focus in states.items()},
        )
        for place, row in enumerate(samples.rows)
    ]


def number_at(values: Array, place: int) -> float | None:
    return None if np.isnan(values[place]) else float(values[place])


# Figures with intervals


def mean_of(values: Array) -> Figure:
    """Mean over questions, (Q,); NaN values are ignored."""
    return figure_of(values[~np.isnan(values)], lambda drawn: drawn.mean(-1))


def median_of(values: Array) -> Figure:
    """Median over questions, (Q,); NaN values are ignored."""
    return figure_of(values[~np.isnan(values)], lambda drawn: np.median(drawn, -1))


def ratio_of(totals: Array, counts: Array) -> Figure:
    """Sum of `totals` over sum of `counts`, both per question, (Q,); questions without counts are ignored."""
    pairs = np.stack([totals, counts], -1)[counts > 0]  # (n, 2)
    return figure_of(pairs, lambda drawn: drawn[..., 0].sum(-1) / drawn[..., 1].sum(-1))


def figure_of(values: Array, statistic: Statistic) -> Figure:
    """A statistic of the values of n questions, (n,) or (n, k), and its percentile interval."""
    number = len(values)
    if number == 0:
        return Figure(value=None, low=None, high=None, count=0)
    value = float(statistic(values))
    if number < MIN_FOR_INTERVAL:
        return Figure(value=value, low=None, high=None, count=number)
    drawn = np.concatenate([statistic(values[places]) for places in resamples(number)])
    low, high = percentile_interval(drawn)
    return Figure(value=value, low=float(low), high=float(high), count=number)
