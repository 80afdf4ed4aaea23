import logging

import pytest

from vgpo.rewards import Grader, accuracy_reward, default_grader, format_reward, functions, process


def test_accuracy_takes_text_and_messages() -> None:
    completions = [
        r"\boxed{7}",
        [{"role": "assistant", "content": r"\boxed{b}"}],
        [{"role": "assistant", "content": r"\boxed{7}"}, {"role": "assistant", "content": "I do not know"}],
    ]
    assert accuracy_reward(completions=completions, answer=["7", "B", 7], prompts=[]) == [1.0, 1.0, 0.0]


def test_accuracy_logs_timeouts_of_its_own_call(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    logged: list[tuple[str, float]] = []
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader(timeout=0.2) as grader, caplog.at_level(logging.ERROR):
        monkeypatch.setattr(functions, "default_grader", lambda: grader)
        for completion in [r"\boxed{\hang}", r"\boxed{7}"]:
            accuracy_reward([completion], ["1.5"], log_metric=lambda name, value: logged.append((name, value)))
    assert logged == [("grader/timeouts", 1.0), ("grader/timeouts", 0.0)]


def test_default_grader_is_one() -> None:
    assert default_grader() is default_grader()


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (r"<think>row 1: 3</think> The answer is \boxed{7}.", 1.0),
        ("  <think>a\nb</think>\n\\boxed{7}\n", 1.0),
        (r"<think>\boxed{6}?</think>\boxed{7}", 1.0),
        (r"Well. <think>a</think>\boxed{7}", 0.0),
        (r"<think>a\boxed{7}", 0.0),
        (r"<think>a</think>7", 0.0),
        (r"<think>a<think>b</think>\boxed{7}", 0.0),
        (r"<think>a</think>\boxed{}", 0.0),
        (r"<think>a</think>\boxed{7", 0.0),
        (r"<think>a</think>\boxed{6}\boxed{7}", 0.0),
        (r"<think>a</think><think>b</think>\boxed{7}", 0.0),
        (r"<think>a</think>\boxed{7}</think>", 0.0),
        (r"\boxed{7}", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion: str, reward: float) -> None:
    assert format_reward([completion], answer=["7"]) == [reward]
    assert format_reward([[{"role": "assistant", "content": completion}]]) == [reward]


@pytest.mark.parametrize("completion", [None, [], [{"role": "assistant", "content": None}]])
def test_completion_of_another_type_names_its_row(completion) -> None:
    with pytest.raises(TypeError, match=r"row 1: the completion is .*, expected str or a list of messages"):
        accuracy_reward(["", completion], ["7", "7"])
