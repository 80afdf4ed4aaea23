"""What verl logs of a step, under the names that TRL's runs have."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vgpo import metric_names as names

# By the name in a log line of TRL's: the name under which verl logs it.
SAME = {
    "loss": "actor/loss",
    "policy_loss": "actor/pg_loss",
    "grad_norm": "actor/grad_norm",
    "learning_rate": "actor/lr",
    "kl": "actor/kl_loss",
    "clip_ratio/region_mean": "actor/pg_clipfrac",
}
# By the phase of a step of vgpo: what verl calls its parts. Rewards are computed while others are generated.
PHASES = {
    "generation": ("gen",),
    "scoring": ("old_log_prob", "ref"),
    "update": ("update_actor",),
    "preparation": ("adv",),
}
SURPLUS = "training/filter_groups/discarded_surplus_samples"


def trl_metrics(logged: Mapping[str, Any], timing: Mapping[str, float], updates: float) -> dict[str, float]:
    """Loss, gradient norm and times of a step, by TRL's names.

    Args:
        logged: verl's metrics.
        timing: verl's seconds by part of a step.
        updates: optimizer steps of a step of verl's; times are those of one.
    """
    metrics = {name: float(logged[theirs]) for name, theirs in SAME.items() if theirs in logged}
    for phase, parts in PHASES.items():
        if seconds := sum(timing.get(part, 0.0) for part in parts):
            metrics[names.TIMES[phase]] = seconds / updates
    if "step" in timing:
        metrics["step_time"] = timing["step"] / updates
    return metrics


def filter_metrics(
    evicted: Mapping[float, int], surplus: float, accuracies: Sequence[float], group_size: int
) -> dict[str, float]:
    """Metrics of dynamic sampling out of what verl's filter has counted.

    Args:
        evicted: groups that were dropped, by the accuracy that all their rollouts have.
        surplus: groups that were finished or running when the batch was full.
        accuracies: of the rollouts that are trained on.
        group_size: rollouts of a group.
    """
    counts = Counter(evicted)
    kept, dropped = len(accuracies) / group_size, sum(counts.values())
    right = sum(accuracies) + sum(value * number for value, number in counts.items()) * group_size
    easy = sum(number for value, number in counts.items() if value > 0.5)
    return {
        names.SAMPLING_GROUPS_DRAWN: kept + dropped + surplus,
        names.SAMPLING_GROUPS_KEPT: kept,
        names.SAMPLING_GROUPS_TOO_EASY: float(easy),
        names.SAMPLING_GROUPS_TOO_HARD: float(dropped - easy),
        names.SAMPLING_GROUPS_CUT: float(surplus),
        names.SAMPLING_ACCURACY_DRAWN: right / max((kept + dropped) * group_size, 1),
    }
