"""Names of the metrics that vgpo adds to those of TRL. `vgpo.training.metric_table` says what each one means."""

from collections.abc import Mapping
from typing import Any

FOCUS_MEAN = "focus/mean"
FOCUS_LATE_EARLY_RATIO = "focus/late_early_ratio"
FOCUS_ROWS_WITHOUT_IMAGE = "focus/rows_without_image"
FOCUS_GATE_RATE = "focus/gate_rate"

SHAPING_DEPENDENCY = "shaping/dependency"
SHAPING_TOKEN_FACTOR_SPREAD = "shaping/token_factor_spread"
SHAPING_ROLLOUT_FACTOR_SPREAD = "shaping/rollout_factor_spread"
SHAPING_EFFECTIVE_SAMPLE_SIZE = "shaping/effective_sample_size"
SHAPING_POSITIVE_MASS = "shaping/positive_mass"
SHAPING_NEGATIVE_MASS = "shaping/negative_mass"

# If the data has strata, the name of the stratum follows after a slash.
ADAPTIVE_STRENGTH = "adaptive/strength"
ADAPTIVE_CORRELATION = "adaptive/correlation"
ADAPTIVE_COMPENSATION = "adaptive/compensation"
ADAPTIVE_TEXT_ONLY_ACCURACY = "adaptive/text_only_accuracy"

SAMPLING_GROUPS_DRAWN = "sampling/groups_drawn"
SAMPLING_GROUPS_KEPT = "sampling/groups_kept"
SAMPLING_GROUPS_TOO_EASY = "sampling/groups_too_easy"
SAMPLING_GROUPS_TOO_HARD = "sampling/groups_too_hard"
SAMPLING_GROUPS_CUT = "sampling/groups_cut"
SAMPLING_ROUNDS = "sampling/rounds"
SAMPLING_ACCURACY_DRAWN = "sampling/accuracy_drawn"

SAMPLING_LOG_PROB_GAP = "sampling/log_prob_gap"
SAMPLING_FAILED_ROLLOUTS = "sampling/failed_rollouts"
SAMPLING_IMPORTANCE_RATIO = "sampling/importance_sampling_ratio/mean"

GUARD_SKIPPED_STEPS = "guard/skipped_steps"
GRADER_TIMEOUTS = "grader/timeouts"

# By phase of a step, in display order.
TIMES = {phase: f"time/{phase}" for phase in ("generation", "reward", "scoring", "update", "preparation")}

ALARM_PREFIX = "alarm/"  # the name of a rule of `vgpo.training.alarms` follows

EVAL_SUITE_PREFIX = "eval_suite/"


def suite_metric(task: str, part: str) -> str:
    """The name of a metric of a benchmark that is evaluated during training: `accuracy`, `no_box` or `truncated`."""
    return f"{EVAL_SUITE_PREFIX}{task}/{part}"


def of_stratum(metric: str, stratum: str | None) -> str:
    """The name of a metric of one stratum; of all data without one."""
    return metric if stratum is None else f"{metric}/{stratum}"


# Names of version 0.1 -> current names.
RENAMED = {
    "focus/token_factor_spread": SHAPING_TOKEN_FACTOR_SPREAD,
    "focus/rollout_factor_spread": SHAPING_ROLLOUT_FACTOR_SPREAD,
    "alarm/groups_alike": ALARM_PREFIX + "zero_reward_std",
    "alarm/answers_cut": ALARM_PREFIX + "truncation",
}


def with_current_names(line: Mapping[str, Any]) -> dict[str, Any]:
    """A log line of this or an earlier version, with current names."""
    return {RENAMED.get(name, name): value for name, value in line.items()}
