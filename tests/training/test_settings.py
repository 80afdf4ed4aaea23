"""Settings check themselves, whatever host builds them."""

from dataclasses import dataclass

import pytest

from vgpo.settings_checks import reject_unused
from vgpo.training.settings import (
    AlarmSettings,
    DynamicSamplingSettings,
    GuardSettings,
    RolloutLogSettings,
    settings_from,
)


@dataclass
class Config:
    """Of a host, with fields of its own."""

    accuracy_low: float = 0.2
    accuracy_high: float = 0.8
    max_sampling_rounds: int = 3
    filter_reward: str | None = None
    learning_rate: float = 1e-6


def test_a_host_builds_them_from_its_own_fields():
    assert settings_from(DynamicSamplingSettings, Config()) == DynamicSamplingSettings(
        accuracy_low=0.2, accuracy_high=0.8, max_sampling_rounds=3
    )


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DynamicSamplingSettings, {"accuracy_low": 0.5, "accuracy_high": 0.5}, "accuracy_low < accuracy_high"),
        (DynamicSamplingSettings, {"accuracy_high": 1.1}, r"accuracy_high=1\.1"),
        (DynamicSamplingSettings, {"max_sampling_rounds": 0}, "max_sampling_rounds is 0, expected a number >= 1"),
        (AlarmSettings, {"alarms": "loud"}, "alarms is 'loud', expected one of 'warn', 'stop', 'off'"),
        (AlarmSettings, {"alarm_truncation": 1.5}, r"alarm_truncation=1\.5, expected 0 to 1; 0 disables this alarm"),
        (AlarmSettings, {"alarm_kl": float("nan")}, "alarm_kl=nan, expected 0 or more"),
        (AlarmSettings, {"alarm_length_growth": 1.0}, "expected above 1, or 0 for no alarm"),
        (AlarmSettings, {"alarms": "off", "alarm_kl": 3.0}, r"alarm_kl=3\.0 has no effect without alarms"),
        (GuardSettings, {"max_skipped_steps": 0}, "max_skipped_steps is 0"),
        (RolloutLogSettings, {"log_rollouts_groups": 0}, "log_rollouts_groups is 0"),
        (RolloutLogSettings, {"log_rollouts_steps": -1}, "log_rollouts_steps is -1"),
    ],
)
def test_a_value_out_of_its_range_is_named(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_rollouts_are_due_every_so_many_steps_or_never():
    assert [step for step in range(7) if RolloutLogSettings(log_rollouts_steps=3).is_due(step)] == [0, 3, 6]
    assert not any(RolloutLogSettings(log_rollouts_steps=0).is_due(step) for step in range(7))


def test_a_setting_without_effect_is_rejected():
    reject_unused(Config(), ["accuracy_low"], without="sampling", fix="sampling=True")
    with pytest.raises(ValueError, match=r"accuracy_low=0\.3 has no effect without sampling\. .* set sampling=True"):
        reject_unused(Config(accuracy_low=0.3), ["accuracy_low"], without="sampling", fix="sampling=True")
