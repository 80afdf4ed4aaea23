"""The rollout record: what it refuses, and lines of vgpo 0.1 as records of today."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from tests.report.run_records import LINE_0_1, rollout
from vgpo.records import describe_faults
from vgpo.training.records import RolloutRecord, upgrade_0_1


def accuracy(names: tuple[str, ...]) -> str | None:
    return "accuracy_reward" if "accuracy_reward" in names else None


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in LINE_0_1.items() if name not in names}


def test_a_line_of_version_0_1_is_upgraded() -> None:
    kept = (
        "step",
        "group",
        "row",
        "id",
        "problem",
        "answer",
        "completion",
        "token_ids",
        "tokens",
        "focus",
        "advantage",
    )
    assert upgrade_0_1(LINE_0_1, accuracy).model_dump() == {
        **{name: LINE_0_1[name] for name in kept},
        "version": 1,
        "media": ["images/a.png"],
        "rewards": {"format_reward": 1.0, "accuracy_reward": 0.0},
        "correct": False,
        # -2 * 1.25 * 1.5, a tool's token, -2 * 1.25 * 0.5
        "token_advantages": [-3.75, None, -1.25],
        "diagnostics": {"gate": [True, None, False], "token_factor": [1.5, None, 0.5], "rollout_factor": 1.25},
    }


@pytest.mark.parametrize(
    ("line", "token_advantages"),
    [
        (without("gate", "token_factor", "rollout_factor"), [-2.0] * 3),
        (without("rollout_factor"), [-3.0, None, -1.0]),
        (without("token_factor"), [-2.5] * 3),
        ({**LINE_0_1, "rollout_factor": None}, None),  # it was not finite
        ({**LINE_0_1, "advantage": None}, None),
    ],
)
def test_the_advantage_of_each_token_follows_from_the_factors(line: dict, token_advantages: list | None) -> None:
    assert upgrade_0_1(line, accuracy).token_advantages == token_advantages


@pytest.mark.parametrize(
    ("rewards", "correct"),
    [({"accuracy_reward": 0.51}, True), ({"accuracy_reward": 0.5}, False), ({"accuracy_reward": None}, None)],
)
def test_a_rollout_is_correct_above_one_half(rewards: dict, correct: bool | None) -> None:
    assert upgrade_0_1({**LINE_0_1, "rewards": rewards}, accuracy).correct is correct


def test_without_an_accuracy_reward_there_is_no_verdict() -> None:
    assert upgrade_0_1({**LINE_0_1, "rewards": {}}, accuracy).correct is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (without("images"), "images: missing"),
        ({**LINE_0_1, "row": "7"}, 'row: found "7", expected a whole number'),
        ({**LINE_0_1, "gate": "no"}, '^diagnostics, gate: found "no", expected a number, or a list of numbers'),
        ({**LINE_0_1, "gate": [0.5, True]}, "^diagnostics, gate: found a list of 2, expected a number, or a list"),
        (
            {**LINE_0_1, "token_factor": [1.0]},
            "diagnostics, token_factor: found 1 values, expected 3, one for each token",
        ),
    ],
)
def test_a_broken_line_of_version_0_1_names_its_field(line: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        upgrade_0_1(line, accuracy)
    assert re.search(message, describe_faults(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"focus": [0.5]}, "focus: found 1 values, expected 4, one for each token"),
        ({"token_advantages": [0.5]}, "token_advantages: found 1 values, expected 4, one for each token"),
        ({"token_ids": []}, "token_ids: found 0 values, expected 4, one for each token"),
        ({"advantage": float("nan")}, "advantage: found NaN, expected a finite number"),
        ({"correct": 1}, "correct: found 1, expected true or false"),
        ({"media": "a.png"}, 'media: found "a.png", expected a list'),
        ({"tokens": ["a", 1, "b", "c"]}, r"tokens\[1\]: found 1, expected text"),
        ({"version": 2}, "version: found 2, expected"),
    ],
)
def test_a_broken_record_names_its_field(changes: dict, message: str) -> None:
    record, _ = rollout()
    with pytest.raises(ValidationError) as caught:
        RolloutRecord.model_validate({**record.model_dump(), **changes})
    assert re.search(message, describe_faults(caught.value))


def test_a_record_does_not_change() -> None:
    record, _ = rollout()
    with pytest.raises(ValidationError, match="frozen"):
        record.step = 2


def test_a_diagnostic_is_a_list_or_a_number() -> None:
    record, _ = rollout()
    assert record.per_token("gate") == [False, False, True, False]
    assert record.per_rollout("rollout_factor") == 1.1
    assert record.per_token("rollout_factor") is record.per_rollout("gate") is record.per_token("other") is None
