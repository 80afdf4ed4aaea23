import logging

import pytest

from vgpo.rewards import Grader, accuracy_reward, default_grader, format_reward, functions, process
from vgpo.rewards.checked import checked, with_prefix


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
    assert format_reward([completion], answer=["7"], response_prefix="") == [reward]
    assert format_reward([[{"role": "assistant", "content": completion}]], response_prefix="") == [reward]


@pytest.mark.parametrize(
    ("prefix", "completion", "reward"),
    [
        ("<think>\n", r"I look.</think>It is \boxed{3}.", 1.0),
        ("<think>\n", r"<think>I look.</think>It is \boxed{3}.", 0.0),
        ("<think>\n", r"It is \boxed{3}.", 0.0),
        ("<think>\n\n</think>\n\n", r"It is \boxed{3}.", 1.0),
        ("<think>\n\n</think>\n\n", r"<think>I look.</think>It is \boxed{3}.", 0.0),
        ("", r"I look.</think>It is \boxed{3}.", 0.0),
        ("", r"<think>I look.</think>It is \boxed{3}.", 1.0),
        (None, r"I look.</think>It is \boxed{3}.", 1.0),
        (None, r"<think>I look.</think>It is \boxed{3}.", 1.0),
        (None, r"It is \boxed{3}.", 0.0),
        (None, r"a <think>I look.</think>It is \boxed{3}.", 0.0),
    ],
)
def test_what_the_prompt_has_of_a_response_counts(prefix: str | None, completion: str, reward: float) -> None:
    assert format_reward([completion], response_prefix=prefix) == [reward]


def test_only_a_reward_that_asks_for_the_prefix_gets_it() -> None:
    def other(completions: list[str], **kwargs: object) -> list[float]:
        return [float("response_prefix" in kwargs)]

    assert with_prefix(other, "<think>")(completions=["a"]) == [0.0]
    bound = with_prefix(checked(format_reward), "<think>\n")
    assert (bound.__name__, bound(completions=[r"a</think>\boxed{3}"])) == ("format_reward", [1.0])


@pytest.mark.parametrize("completion", [None, [], [{"role": "assistant", "content": None}]])
def test_completion_of_another_type_names_its_row(completion) -> None:
    with pytest.raises(TypeError, match=r"row 1: the completion is .*, expected str or a list of messages"):
        accuracy_reward(["", completion], ["7", "7"])
