"""Settings of training that every host has. Each class checks itself; a host builds it from its own configuration."""

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from vgpo.settings_checks import check_choice, check_number, reject_unused

T = TypeVar("T")


def settings_from(kind: type[T], config: object) -> T:
    """The settings class `kind` with the values that `config` has under the same names.

    Raises:
        ValueError: a value out of its range.
    """
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DynamicSamplingSettings:
    """Which groups dynamic sampling keeps (DAPO, arXiv 2503.14476).

    Raises:
        ValueError: a value out of its range.
    """

    accuracy_low: float = 0.01
    """Groups whose mean accuracy is above this are kept, in [0, 1)."""
    accuracy_high: float = 0.99
    """Groups whose mean accuracy is below this are kept, in (0, 1]."""
    max_sampling_rounds: int = 10
    """Rounds after which a batch that is not full is an error, at least 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_low < self.accuracy_high <= 1:
            raise ValueError(
                f"accuracy_low={self.accuracy_low} and accuracy_high={self.accuracy_high}: expected "
                "0 <= accuracy_low < accuracy_high <= 1."
            )
        check_number("max_sampling_rounds", self.max_sampling_rounds, low=1, low_included=True)


# Largest value of each threshold; 0 disables the alarm.
ALARM_THRESHOLDS = {
    "alarm_entropy": inf,
    "alarm_zero_reward_std": 1.0,
    "alarm_truncation": 1.0,
    "alarm_length_growth": inf,
    "alarm_sampling_rounds": inf,
    "alarm_skipped_steps": inf,
    "alarm_kl": inf,
    "alarm_log_prob_gap": inf,
    "alarm_importance_ratio": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class AlarmSettings:
    """When logged metrics raise an alarm, and what it does (`vgpo.training.alarms`).

    Raises:
        ValueError: a value out of its range.
    """

    alarms: str = "warn"
    """'warn' and keep the checkpoint from before it, 'stop' with a checkpoint too, or 'off'."""
    alarm_lines: int = 10
    """Logged lines in a row with a bad value that raise an alarm, at least 1."""
    alarm_entropy: float = 0.01
    """Lowest entropy of the policy, nats per token."""
    alarm_zero_reward_std: float = 1.0
    """Share of groups whose rollouts all have the same reward, from which on there is an alarm; in [0, 1]."""
    alarm_truncation: float = 0.5
    """Highest share of rollouts that max_completion_length truncates; in [0, 1]."""
    alarm_length_growth: float = 4.0
    """Highest mean response length, as a multiple of that in the first `alarm_lines`; above 1."""
    alarm_sampling_rounds: int = 7
    """Rounds of dynamic sampling for one batch, from which on there is an alarm."""
    alarm_skipped_steps: int = 1
    """Steps skipped since the last line, from which on there is an alarm."""
    alarm_kl: float = 1.0
    """Highest divergence from the reference model, nats per token."""
    alarm_log_prob_gap: float = 0.2
    """Highest mean difference of scored and sampled log-probabilities, nats per token."""
    alarm_importance_ratio: float = 0.5
    """Lowest mean importance ratio of the policy to the inference engine that sampled; in [0, 1]."""

    def __post_init__(self) -> None:
        check_choice("alarms", self.alarms, ("warn", "stop", "off"))
        check_number("alarm_lines", self.alarm_lines, low=1, low_included=True)
        for name, most in ALARM_THRESHOLDS.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                limits = "0 or more" if most == inf else f"0 to {most:g}"
                raise ValueError(f"{name}={value}, expected {limits}; 0 disables this alarm.")
        if 0 < self.alarm_length_growth <= 1:
            raise ValueError(f"alarm_length_growth={self.alarm_length_growth}, expected above 1, or 0 for no alarm.")
        if self.alarms == "off":
            reject_unused(self, ["alarm_lines", *ALARM_THRESHOLDS], without="alarms", fix="alarms='warn'")


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """How many steps with a non-finite loss or gradient norm a run survives (`vgpo.training.finite_guard`).

    Raises:
        ValueError: a value out of its range.
    """

    max_skipped_steps: int = 5
    """Steps in a row that may be skipped before the run stops, at least 1."""

    def __post_init__(self) -> None:
        check_number("max_skipped_steps", self.max_skipped_steps, low=1, low_included=True)


@dataclass(frozen=True, kw_only=True)
class RolloutLogSettings:
    """Which rollouts are written for people to read.

    Raises:
        ValueError: a value out of its range.
    """

    log_rollouts_steps: int = 10
    """Write rollouts every N optimizer steps; 0 for never."""
    log_rollouts_groups: int = 1
    """Groups that are written each time, at least 1."""

    def __post_init__(self) -> None:
        check_number("log_rollouts_steps", self.log_rollouts_steps, low=0, low_included=True)
        check_number("log_rollouts_groups", self.log_rollouts_groups, low=1, low_included=True)

    def is_due(self, step: int) -> bool:
        """Whether rollouts of the update after `step` are written."""
        return self.log_rollouts_steps > 0 and step % self.log_rollouts_steps == 0
