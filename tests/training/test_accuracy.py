"""Which reward is the accuracy: one rule, whose result the run folder stores."""

import pytest

from vgpo.run import RunFolderError
from vgpo.run.accuracy import accuracy_reward_of
from vgpo.training.accuracy import accuracy_reward_name


@pytest.mark.parametrize(
    ("names", "filter_reward", "expected"),
    [
        (["format_reward", "accuracy_reward"], None, "accuracy_reward"),
        (["format_reward", "my_accuracy", "accuracy_reward"], None, "my_accuracy"),
        (["format_reward", "score"], None, "format_reward"),
        (["format_reward", "accuracy_reward"], "format_reward", "format_reward"),
    ],
)
def test_the_rule(names: list[str], filter_reward: str | None, expected: str) -> None:
    assert accuracy_reward_name(names, filter_reward) == expected


def test_a_reward_that_is_not_there_is_named() -> None:
    message = r"filter_reward='accuracy' is not one of the reward functions \['accuracy_reward'\]"
    with pytest.raises(ValueError, match=message):
        accuracy_reward_name(["accuracy_reward"], "accuracy")
    with pytest.raises(RunFolderError, match=rf"config\.yaml: {message}"):
        accuracy_reward_of({"filter_reward": "accuracy"}, ["accuracy_reward"])


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"accuracy_reward": "score", "filter_reward": "x"}, ["format_reward", "accuracy_reward"], "score"),
        ({"filter_reward": "format_reward"}, ["format_reward", "accuracy_reward"], "format_reward"),
        ({"filter_reward": None}, ["format_reward", "accuracy_reward"], "accuracy_reward"),
        ({}, ["format_reward", "accuracy_reward"], "accuracy_reward"),
        ({}, [], None),
    ],
)
def test_what_the_settings_of_a_run_say(config: dict, names: list[str], expected: str | None) -> None:
    assert accuracy_reward_of(config, names) == expected
