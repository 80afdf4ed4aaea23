"""Reward functions that a recipe names: found where they are said to be, and held to what the trainer needs."""

import asyncio
import functools
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from vgpo.rewards import REWARDS, RewardError, check_arguments, checked, load_reward

COLUMNS: dict[str, Any] = {
    "prompts": [[{"role": "user", "content": "?"}]] * 4,
    "completions": ["a", "bb", "ccc", "dddd"],
    "completion_ids": [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]],
    "problem": ["How many?", "How long?", "How wide?", "How high? " * 20],
    "answer": ["1", "2", "3", "4"],
    "row_index": [7, 8, 9, 10],
    "trainer_state": None,
}

OWN = """
import functools

def good(completions, answer, completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]

async def waits(completions, **kwargs):
    return [0.5 for _ in completions]

class Judge:
    def __call__(self, completions, **kwargs):
        return [1.0 for _ in completions]

judge = Judge()
half = functools.partial(good, scale=0.5)

def raises_in_row_3(completions, **kwargs):
    return [1 / (4 - len(text)) for text in completions]

async def raises_async(completions, **kwargs):
    return [1 / (4 - len(text)) for text in completions]

def raises_for_batches(completions, **kwargs):
    if len(completions) > 1:
        raise RuntimeError("one at a time \\x1b[2J")
    return [0.0]

def short(completions, **kwargs):
    return [1.0]

def returns_nan(completions, **kwargs):
    return [0.0, 0.0, float("nan"), 0.0]

def returns_inf(completions, **kwargs):
    return [0.0, float("inf"), 0.0, 0.0]

def returns_text(completions, **kwargs):
    return "1.0"

def returns_texts(completions, **kwargs):
    return ["1.0" for _ in completions]

def returns_nothing(completions, **kwargs):
    [1.0 for _ in completions]

def returns_number(completions, **kwargs):
    return 1.0

def returns_dict(completions, **kwargs):
    return {"accuracy": 1.0}

def wants_solution(completions, solution, **kwargs):
    return [1.0 for _ in completions]

def wants_answers(completions, answers, **kwargs):
    return [1.0 for _ in completions]

def takes_few(completions, answer):
    return [1.0 for _ in completions]

number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own_package.py").write_text("from own import good\n")
    (tmp_path / "broken.py").write_text("import json\nimport no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own", "own_package", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    load_reward.cache_clear()
    return tmp_path


def call(source: str) -> list[float | None]:
    reward = load_reward(source)
    result = reward(**COLUMNS)
    return asyncio.run(result) if is_async_callable(reward) else result


@pytest.mark.parametrize(
    ("source", "name", "rewards"),
    [
        ("own.py:good", "good", [1.0, 2.0, 3.0, 4.0]),
        ("own:good", "good", [1.0, 2.0, 3.0, 4.0]),
        ("own_package:good", "good", [1.0, 2.0, 3.0, 4.0]),
        ("own.py:waits", "waits", [0.5] * 4),
        ("own.py:judge", "Judge", [1.0] * 4),
        ("own.py:half", "good", [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_own_functions_are_found_and_keep_their_names(own: Path, source: str, name: str, rewards: list[float]) -> None:
    reward = load_reward(source)
    assert get_callable_name(reward) == name
    assert is_async_callable(reward) == (name == "waits")
    assert call(source) == rewards


def test_ours_are_found_by_name() -> None:
    assert set(REWARDS) == {"accuracy", "accuracy_math_verify", "format"}
    assert get_callable_name(load_reward("accuracy")) == "accuracy_reward"
    assert load_reward("format")(completions=["x"]) == [0.0]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("acuracy", ["unknown reward 'acuracy'", "did you mean 'accuracy'?", "module:function"]),
        ("own.py:god", ["own.py has no 'god'", "did you mean 'good'?"]),
        ("elsewhere.py:good", ["there is no file", "elsewhere.py"]),
        ("no_such_module:good", ["importing no_such_module failed", "ModuleNotFoundError", "'no_such_module'"]),
        ("broken:good", ["importing broken failed", "ModuleNotFoundError", "'no_such_thing'", "broken.py:2"]),
        ("broken.py:good", ["importing broken.py failed", "'no_such_thing'", "broken.py:2"]),
        ("own.py:number", ["'number' is int, expected a function"]),
        ("own.py:Judge", ["'Judge' is a class, expected a function, or an object"]),
        ("builtins:max", ["wrap it in a function with arguments and **kwargs"]),
        ("own.py:short", ["reward 'short' returned 1 values", "a list of 4 numbers"]),
        ("own.py:returns_nan", ["'returns_nan' returned float nan", "row 2 of the batch (row_index 9", "'How wide?'"]),
        ("own.py:returns_inf", ["returned float inf", "row 1 of the batch", "a finite number, or None"]),
        ("own.py:returns_text", ["returned str '1.0'", "a list of 4 numbers"]),
        ("own.py:returns_texts", ["returned str '1.0' for row 0 of the batch", "a finite number"]),
        ("own.py:returns_nothing", ["returned None", "is its `return` missing?"]),
        ("own.py:returns_number", ["returned float 1.0", "a list of 4 numbers"]),
        ("own.py:returns_dict", ["returned dict {'accuracy': 1.0}", "a list of 4 numbers"]),
        ("own.py:raises_in_row_3", ["raised ZeroDivisionError for row 3 of the batch (row_index 10", "4 - len(text)"]),
        ("own.py:raises_async", ["raised ZeroDivisionError for row 3 of the batch", "4 - len(text)"]),
        ("own.py:raises_for_batches", ["raised RuntimeError for the complete batch", "one at a time [U+001B][2J"]),
        ("own.py:wants_solution", ["'wants_solution' asks for 'solution'", "not a column", "'answer'"]),
        ("own.py:wants_answers", ["asks for 'answers'", "did you mean 'answer'?"]),
        ("own.py:takes_few", ["'takes_few' does not take", "'completion_ids'", "add **kwargs"]),
    ],
)
def test_a_mistake_is_named_with_its_cure(own: Path, source: str, expected: list[str]) -> None:
    with pytest.raises(RewardError) as raised:
        call(source)
    for part in expected:
        assert part in str(raised.value)


def test_a_module_that_lies_where_python_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "of_mine.py").write_text("from beside_it.parts import size\n\ndef good(completions, **kwargs): ...\n")
    (folder / "beside_it").mkdir()
    (folder / "beside_it" / "parts.py").write_text("size = 1\n")
    monkeypatch.chdir(folder)
    for source, name in (("of_mine:good", "of_mine"), (f"{folder}/of_mine.py:good", "beside_it")):
        with pytest.raises(RewardError) as raised:
            load_reward(source)
        assert f"{name} is in {folder}, which is not on Python's path" in str(raised.value)
        assert str(raised.value).endswith(f"PYTHONPATH={folder}")
    monkeypatch.syspath_prepend(folder)
    assert load_reward("of_mine:good") is not None
    with pytest.raises(RewardError) as raised:
        load_reward("elsewhere:good")
    assert "PYTHONPATH" not in str(raised.value)


def test_the_error_of_the_function_is_the_cause(own: Path) -> None:
    with pytest.raises(RewardError) as raised:
        call("own.py:raises_in_row_3")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert raised.value.__cause__.__traceback__ is not None


@pytest.mark.parametrize(
    ("returned", "rewards"),
    [
        ([1, 0.5, True, Fraction(1, 4)], [1.0, 0.5, 1.0, 0.25]),
        ((0.0, None, 1.0, None), [0.0, None, 1.0, None]),
        (np.array([0, 1, 0, 1]), [0.0, 1.0, 0.0, 1.0]),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), [0.0, 1.0, 0.0, 1.0]),
    ],
)
def test_numbers_of_any_kind_are_taken(returned: Any, rewards: list[float | None]) -> None:
    assert checked(lambda completions, **kwargs: returned)(**COLUMNS) == rewards


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(2), 10**400, 1j, b"1"])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RewardError, match="for row 0 of the batch"):
        checked(lambda completions, **kwargs: [value] * 4)(**COLUMNS)


def test_arguments_are_checked_before_the_call() -> None:
    def reward(prompts: list, completions: list, *, solution: list, scale: float = 1.0, **kwargs: Any) -> list:
        raise AssertionError("called")

    check_arguments(reward, ["prompts", "completions", "solution", "images"])
    with pytest.raises(RewardError, match="asks for 'solution', which is not a column of the dataset: it is called"):
        check_arguments(reward, ["prompts", "completions", "images"])
    check_arguments(functools.partial(reward, solution=[]), ["prompts", "completions"])


def test_a_file_is_run_once(own: Path) -> None:
    reward: Callable[..., Any] = load_reward("own.py:good")
    assert load_reward("own.py:good") is reward
