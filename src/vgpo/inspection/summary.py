"""Summary of each model over all rollouts for the page: counts, means, curves, distributions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist, fmean, quantiles, stdev
from typing import Any

from vgpo.focus.statistics import NUM_DECILES, focus_by_decile
from vgpo.inspection.schema import ABLATIONS, ATTENDED

Z_95 = NormalDist().inv_cdf(0.975)
OUTCOMES = (("correct", True), ("wrong", False))


def summarise(model: int, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one model.

    Returns:
        dict: `num_rollouts`, `num_correct`, `num_truncated`; `focus`, mean over rollouts of their mean rho, or None;
        `outcomes`, for `correct` and `wrong`: `deciles` (see `mean_deciles`) and `late_early` (see `distribution`);
        `attention`, None or `deciles` for `image`, `question` and `generated`; `without`, None or the outcome
        of each of `ABLATIONS` that was measured: see `summarise_without`.
    """
    rollouts = [one for question in questions for one in question["rollouts"] if one["model"] == model]
    means = [mean for one in rollouts if (mean := mean_of(one["focus"])) is not None]
    attention = [one["attention"] for one in rollouts if one["attention"]]
    ablated = [one for one in rollouts if one["without"]]
    return {
        "num_rollouts": len(rollouts),
        "num_correct": sum(one["correct"] for one in rollouts),
        "num_truncated": sum(one["truncated"] for one in rollouts),
        "focus": fmean(means) if means else None,
        "outcomes": {
            name: summarise_outcome([one for one in rollouts if one["correct"] is correct])
            for name, correct in OUTCOMES
        },
        "attention": {source: mean_deciles(one[source] for one in attention) for source in ATTENDED}
        if attention
        else None,
        "without": {
            ablation: summarise_without(ablation, ablated)
            for ablation in ABLATIONS
            if any(ablation in one["without"] for one in ablated)
        }
        or None,
    }


def summarise_outcome(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios = [one["late_early_ratio"] for one in rollouts if one["late_early_ratio"] is not None]
    return {
        "deciles": mean_deciles(one["focus"] for one in rollouts if one["focus"]),
        "late_early": distribution(ratios),
    }


def summarise_without(ablation: str, rollouts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of rollouts with this ablation; correct before, correct with it, and with a changed answer."""
    asked = [(one, one["without"][ablation]) for one in rollouts if one["without"].get(ablation)]
    return {
        "num_rollouts": len(asked),
        "num_correct_before": sum(one["correct"] for one, _ in asked),
        "num_correct": sum(again["correct"] for _, again in asked),
        "num_changed": sum(again["predicted"] != one["predicted"] for one, again in asked),
    }


def mean_of(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return fmean(known) if known else None


def mean_deciles(curves: Iterable[Sequence[float | None]]) -> dict[str, Any]:
    """Mean over rollouts in each tenth of the response.

    Returns:
        dict: `num_rollouts`; `values`, `low` and `high`, ten each: the mean and its 95 % normal interval over rollouts
        (None if no rollout, or for the bounds fewer than two, has a token in that tenth).
    """
    tenths = [focus_by_decile(curve) for curve in curves]
    found = [interval([tenth[i] for tenth in tenths]) for i in range(NUM_DECILES)]
    bounds = {name: [one[place] for one in found] for place, name in enumerate(("values", "low", "high"))}
    return {"num_rollouts": len(tenths), **bounds}


def interval(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """The mean of the known values, and its 95 % normal interval."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None, None
    mean = fmean(known)
    if len(known) == 1:
        return round(mean, 4), None, None
    reach = Z_95 * stdev(known) / math.sqrt(len(known))
    return round(mean, 4), round(mean - reach, 4), round(mean + reach, 4)


def distribution(values: Sequence[float]) -> dict[str, Any] | None:
    """`values` ascending, with `mean` and the quartiles `low`, `median`, `high`; None if there is no value."""
    if not values:
        return None
    low, median, high = quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "values": [round(value, 4) for value in sorted(values)],
        "mean": fmean(values),
        "low": low,
        "median": median,
        "high": high,
    }


def difference(question: Mapping[str, Any]) -> dict[str, float | None]:
    """Difference of the second model to the first on a question.

    Returns:
        dict: `correct`, difference of the shares of correct samples; `focus`, of the mean rho; None where a model has
        none.
    """
    of_model = [[one for one in question["rollouts"] if one["model"] == model] for model in (0, 1)]
    correct = [mean_of([float(one["correct"]) for one in rollouts]) for rollouts in of_model]
    focus = [mean_of([mean_of(one["focus"]) for one in rollouts]) for rollouts in of_model]
    return {"correct": subtract(correct), "focus": subtract(focus)}


def subtract(pair: Sequence[float | None]) -> float | None:
    first, second = pair
    return None if first is None or second is None else second - first


def paired_verdicts(questions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of questions by which of two models answers every sample correctly: `both`, `first`, `second`,
    `neither`."""
    counts = dict.fromkeys(("both", "first", "second", "neither"), 0)
    for question in questions:
        verdicts = [[one["correct"] for one in question["rollouts"] if one["model"] == model] for model in (0, 1)]
        if all(verdicts):
            first, second = (all(verdict) for verdict in verdicts)
            counts["both" if first and second else "first" if first else "second" if second else "neither"] += 1
    return counts
