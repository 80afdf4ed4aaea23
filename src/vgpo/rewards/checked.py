"""Validated reward functions: one finite number per row, or an error that names the row.

A reward function has TRL's signature: it is called with keyword arguments only, `prompts`, `completions`,
`completion_ids` and every column of the dataset, each a list with one entry per completion, and with `trainer_state`,
`log_extra` and `log_metric`. It returns one number per completion, or None where it does not apply; it may be `async`.
"""

import contextlib
import functools
import inspect
import itertools
import math
import traceback
from collections.abc import Callable, Coroutine, Iterable, Sequence, Sized
from typing import Any, SupportsFloat

from vgpo.rewards.containment import StoppedBySignal, contained
from vgpo.text import did_you_mean, visible

RewardFunction = Callable[..., Any]

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Arguments of every reward function, in addition to the columns of the dataset."""


MAX_REWARD = 1e9
"""Largest absolute reward. The square of a weighted sum of larger ones can overflow float32 in a group's variance,
which makes its advantages 0 or NaN."""

FAILURES = (Exception, SystemExit)
"""Errors of a reward function that do not end the process. KeyboardInterrupt ends a run with status 130."""


class RewardError(ValueError):
    """A reward function that cannot be found or called, or returns invalid values; names it and, if possible, the
    row."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


def checked(function: RewardFunction) -> RewardFunction:
    """Wrap `function` under its own name, and convert its errors to RewardErrors.

    Its arguments must fit (`check_arguments`), and what it returns must be one finite number, or None, for each
    completion, at most `MAX_REWARD` in absolute value. If it raises, it is called again row by row, to name the first
    failing row; the original error is the cause. Its side effects on the process are undone (`contained`). Async
    functions stay async.
    """

    @functools.wraps(function)
    def reward(**columns: Any) -> list[float | None]:
        return _run(_call_checked(function, columns))

    @functools.wraps(function)
    async def async_reward(**columns: Any) -> list[float | None]:
        return await _call_checked(function, columns)

    wrapper = async_reward if is_async(function) else reward
    wrapper.__name__ = reward_name(function)  # instances have no name to copy
    return wrapper


async def _call_checked(function: RewardFunction, columns: dict[str, Any]) -> list[float | None]:
    check_arguments(function, columns)
    name = reward_name(function)
    try:
        result = await _call(function, columns)
    except StoppedBySignal:
        raise
    except FAILURES as error:
        for row in range(len(columns["completions"])):
            try:
                await _call(function, _one_row(columns, row))
            except StoppedBySignal:
                raise
            except FAILURES as again:
                raise _raised(name, again, _named_row(columns, row)) from again
        raise _raised(name, error, "the complete batch, but for none of its rows separately") from error
    return _read(name, result, columns)


async def _call(function: RewardFunction, columns: dict[str, Any]) -> Any:
    with contained():
        result = function(**columns)
        return await result if is_async(function) else result


def _run(coroutine: Coroutine[Any, Any, list[float | None]]) -> list[float | None]:
    """The result of a coroutine that never waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a synchronous reward function was awaited")


def reward_name(function: RewardFunction) -> str:
    """The name that metrics and errors use: the function's, or the class's of a callable object."""
    if isinstance(function, functools.partial):
        return reward_name(function.func)
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def with_prefix(function: RewardFunction, response_prefix: str) -> RewardFunction:
    """`function`, which gets `response_prefix` if it has an argument of that name; see `format_reward`."""
    if "response_prefix" not in inspect.signature(function).parameters:
        return function
    bound: Any = functools.partial(function, response_prefix=response_prefix)
    bound.__name__ = reward_name(function)  # which TRL asks for
    return bound


def is_async(function: RewardFunction) -> bool:
    """Whether calling `function` gives a coroutine; looks into partials and callable objects."""
    if isinstance(function, functools.partial):
        return is_async(function.func)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_arguments(function: RewardFunction, columns: Iterable[str]) -> None:
    """Check that `function` can be called with `columns` as keyword arguments.

    Raises:
        RewardError: It requires another one, or has no `**kwargs` and does not name all of them.
    """
    name, columns = reward_name(function), list(columns)
    parameters = inspect.signature(function).parameters
    required = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    for key in required:
        if key not in columns:
            raise RewardError(
                f"reward {name!r} asks for {key!r}, which is not a column of the dataset"
                f"{did_you_mean(key, set(columns) - set(GIVEN))}: it is called with {sorted(columns)}. "
                "Rename the argument, or give it a default"
            )
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unexpected = sorted(set(columns) - set(parameters))
    if unexpected and not takes_all:
        raise RewardError(f"reward {name!r} does not take {unexpected}; add **kwargs to its arguments")


def _read(name: str, result: Any, columns: dict[str, Any]) -> list[float | None]:
    """The rewards from a function's result; reading it may run user code."""
    try:
        with contained():
            return _as_rewards(name, result, columns)
    except (RewardError, StoppedBySignal):
        raise
    except FAILURES as error:
        raise _raised(name, error, f"its result ({type(result).__name__}) when it was read") from error


def _as_rewards(name: str, result: Any, columns: dict[str, Any]) -> list[float | None]:
    num_rows = len(columns["completions"])
    expected = f"expected a list of {num_rows} numbers, one for each completion"
    if result is None:
        raise RewardError(f"reward {name!r} returned None, {expected}; is its `return` missing?")
    if isinstance(result, str | bytes | dict) or not (isinstance(result, Iterable) and isinstance(result, Sized)):
        raise RewardError(f"reward {name!r} returned {_shown(result)}, {expected}")
    values = list(itertools.islice(result, num_rows + 1))  # an iterator may be infinite, whatever its length says
    if len(values) != num_rows:
        found = f"more than {num_rows}" if len(values) > num_rows else len(values)
        raise RewardError(f"reward {name!r} returned {found} values, {expected}")
    return [None if value is None else _as_reward(name, value, columns, row) for row, value in enumerate(values)]


def _as_reward(name: str, value: Any, columns: dict[str, Any], row: int) -> float:
    """`value` as a float. A number is one of Python, NumPy or PyTorch."""
    number = math.nan
    if isinstance(value, SupportsFloat):
        with contextlib.suppress(Exception):  # an array of several numbers; an int beyond floats
            number = float(value)
    if not math.isfinite(number):
        raise RewardError(
            f"reward {name!r} returned {_shown(value)} for {_named_row(columns, row)}; "
            "expected a finite number, or None where the reward does not apply"
        )
    if abs(number) > MAX_REWARD:
        raise RewardError(
            f"reward {name!r} returned {_shown(value)} for {_named_row(columns, row)}; expected a number from "
            f"{-MAX_REWARD:g} to {MAX_REWARD:g}: larger ones overflow float32 in the variance of a group, and nothing "
            "is learned. Scale the reward down"
        )
    return number


def _one_row(columns: dict[str, Any], row: int) -> dict[str, Any]:
    num_rows = len(columns["completions"])
    return {
        key: [value[row]] if isinstance(value, list) and len(value) == num_rows else value
        for key, value in columns.items()
    }


def _named_row(columns: dict[str, Any], row: int) -> str:
    """Rows count from 0; `row_index` is the row of the dataset."""
    known = [f"{key} {repr(columns[key][row])[:60]}" for key in ("row_index", "id", "problem") if key in columns]
    return f"row {row} of the batch" + (f" ({', '.join(known)})" if known else "")


def _raised(name: str, error: BaseException, where: str) -> RewardError:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    trace = "".join(traceback.format_exception(type(error), error, frames, chain=False)).rstrip()
    why = "; a reward returns, it cannot end the run" if isinstance(error, SystemExit) else ""
    return RewardError(f"reward {name!r} raised {type(error).__name__} for {where}{why}\n{trace}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)[:80]
    except Exception as error:  # noqa: BLE001  # code of the user, which is only described here
        text = f"(its __repr__ raises {type(error).__name__})"
    return f"{type(value).__name__} {text}"


def check_reward_columns(rewards: Iterable[RewardFunction], prompts: Sequence[dict[str, Any]]) -> None:
    """Check that the dataset has the columns that the rewards need.

    Raises:
        RewardError: A column is missing, or a reward does not take all; names both.
    """
    columns = [*GIVEN, *(key for key in prompts[0] if key != "prompt"), "row_index"]
    for reward in rewards:
        check_arguments(reward, columns)
