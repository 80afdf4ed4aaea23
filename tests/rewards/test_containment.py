"""What a reward function does to the process: it is an error that names the reward, or undone."""

import asyncio
import functools
import math
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vgpo.rewards import RewardError, checked, load_reward
from vgpo.rewards.checked import MAX_REWARD
from vgpo.rewards.containment import StoppedBySignal, contained

COLUMNS: dict[str, Any] = {"completions": ["a", "b"], "row_index": [7, 8]}


def reward_that(act: Callable[[], object], returned: Any = (0.0, 1.0)) -> Callable[..., Any]:
    def reward(completions: list[str], **kwargs: Any) -> Any:
        act()
        return returned

    return checked(reward)


ENDINGS: dict[str, Callable[[], object]] = {
    "sys.exit(0)": functools.partial(sys.exit, 0),
    "os._exit(0)": lambda: os._exit(0),
    "os.execvp": lambda: os.execvp("true", ["true"]),
    "os.execve": lambda: os.execve("/bin/true", ["true"], {}),
}


@pytest.mark.parametrize("act", ENDINGS.values(), ids=ENDINGS)
def test_a_reward_that_would_end_the_process_is_an_error(act: Callable[[], object]) -> None:
    with pytest.raises(
        RewardError, match=r"reward 'reward' raised SystemExit for row 0 .*row_index 7.*cannot end the"
    ):
        reward_that(act)(**COLUMNS)
    assert type(os._exit) is type(os.getpid)


@pytest.mark.parametrize("act", ENDINGS.values(), ids=ENDINGS)
def test_an_async_reward_that_would_end_the_process_is_an_error(act: Callable[[], object]) -> None:
    async def reward(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        act()
        return [0.0, 0.0]

    async def both() -> list[Any]:
        return await asyncio.gather(*(checked(reward)(**COLUMNS) for _ in range(2)), return_exceptions=True)

    errors = asyncio.run(both())
    assert [type(error) for error in errors] == [RewardError, RewardError]
    assert type(os._exit) is type(os.getpid)


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "import os; os._exit(0)", "from os import _exit; _exit(0)"])
def test_a_file_that_would_end_the_process_when_it_is_imported_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(text)
    with pytest.raises(RewardError, match=r"importing .*ends.py failed: SystemExit"):
        load_reward(f"{tmp_path}/ends.py:reward")


def test_an_exit_that_the_module_imported_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from os import _exit\ndef reward(**kwargs):\n    _exit(0)\n")
    with pytest.raises(RewardError, match="raised SystemExit for row 0"):
        load_reward(f"{tmp_path}/own.py:reward")(**COLUMNS)


def test_a_signal_during_a_reward_still_ends_the_run() -> None:
    signals = [StoppedBySignal(143)]  # it comes once

    def stop() -> None:
        if signals:
            raise signals.pop()

    with pytest.raises(StoppedBySignal):
        reward_that(stop)(**COLUMNS)


def test_a_signal_while_the_failing_row_is_looked_for_still_ends_the_run() -> None:
    errors: list[BaseException] = [StoppedBySignal(143), ValueError()]

    def fail() -> None:
        raise errors.pop()

    with pytest.raises(StoppedBySignal):
        reward_that(fail)(**COLUMNS)


def test_ctrl_c_during_a_reward_still_ends_the_run() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward_that(stop)(**COLUMNS)


@pytest.mark.parametrize("raises", [False, True])
def test_a_forked_child_ends_where_it_would_leave_the_reward(raises: bool) -> None:
    children: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid:
            children.append(pid)
        elif raises:
            raise ValueError

    assert reward_that(fork)(**COLUMNS) == [0.0, 1.0]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [1]


def test_a_reward_may_fork_children_that_end_by_themselves() -> None:
    def fork() -> None:
        pid = os.fork()
        if not pid:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5

    assert reward_that(fork)(**COLUMNS) == [0.0, 1.0]


@pytest.mark.process
def test_a_reward_may_use_processes_of_multiprocessing() -> None:
    def square() -> None:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map(math.sqrt, [4.0]) == [2.0]

    assert reward_that(square)(**COLUMNS) == [0.0, 1.0]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_working_folder_is_restored(own_folder: Path) -> None:
    reward_that(lambda: os.chdir("/"))(**COLUMNS)
    assert Path.cwd() == own_folder


def test_the_working_folder_is_restored_after_an_error(own_folder: Path) -> None:
    def leave_and_fail() -> None:
        os.chdir("/")
        raise ValueError

    with pytest.raises(RewardError):
        reward_that(leave_and_fail)(**COLUMNS)
    assert Path.cwd() == own_folder


def test_handlers_of_signals_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    reward_that(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))(**COLUMNS)
    assert signal.getsignal(signal.SIGTERM) is before


def test_streams_that_are_replaced_are_restored() -> None:
    before = sys.stdout, sys.stderr

    def replace() -> None:
        sys.stdout = sys.stderr = None

    reward_that(replace)(**COLUMNS)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_standard_descriptor_that_is_closed_is_restored(number: int) -> None:
    before = os.fstat(number)
    reward_that(lambda: os.close(number))(**COLUMNS)
    assert os.path.samestat(os.fstat(number), before)
    assert os.get_inheritable(number)


def test_random_numbers_of_a_reward_go_on_from_call_to_call() -> None:
    drawn: list[float] = []
    reward = reward_that(lambda: drawn.append(random.random()))
    reward(**COLUMNS)
    reward(**COLUMNS)
    assert drawn[0] != drawn[1]


def test_no_descriptor_is_left_open() -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        with contained():
            pass
    assert len(list(Path("/dev/fd").iterdir())) == before


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_an_error_without_a_text_is_named() -> None:
    def fail() -> None:
        raise UnprintableError

    with pytest.raises(RewardError, match=r"raised UnprintableError for row 0(.|\n)*str\(\) failed"):
        reward_that(fail)(**COLUMNS)


def test_an_import_that_raises_an_error_without_a_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("class E(Exception):\n    def __str__(self): raise KeyError\nraise E\n")
    with pytest.raises(RewardError, match=r"bad.py failed: .*E.*str\(\) failed.*bad.py:3"):
        load_reward(f"{tmp_path}/bad.py:reward")


class Hostile:
    """A number and a list whose every part does something else."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __float__(self) -> float:
        return float(self.act())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int(self.act())  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[Any]:
        raise KeyError

    def __repr__(self) -> str:
        raise ValueError


def test_a_number_that_cannot_be_read_is_named() -> None:
    value = Hostile(lambda: [][0])
    with pytest.raises(RewardError, match=r"returned Hostile \(its __repr__ raises ValueError\) for row 1"):
        reward_that(lambda: None, [0.0, value])(**COLUMNS)


@pytest.mark.parametrize("act", ENDINGS.values(), ids=ENDINGS)
def test_a_number_that_would_end_the_process_is_an_error(act: Callable[[], object]) -> None:
    with pytest.raises(RewardError, match="raised SystemExit for its result"):
        reward_that(lambda: None, [0.0, Hostile(act)])(**COLUMNS)


def test_a_list_that_cannot_be_read_is_named() -> None:
    with pytest.raises(RewardError, match=r"raised KeyError for its result \(Hostile\)"):
        reward_that(lambda: None, Hostile(lambda: 2))(**COLUMNS)


class Endless:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[float]:
        while True:
            yield 1.0


def test_a_list_without_an_end_is_refused() -> None:
    with pytest.raises(RewardError, match="returned more than 2 values, expected a list of 2 numbers"):
        reward_that(lambda: None, Endless())(**COLUMNS)


def test_a_number_is_read_once() -> None:
    given = iter([0.5, math.nan])
    assert reward_that(lambda: None, [0.0, Hostile(lambda: next(given))])(**COLUMNS) == [0.0, 0.5]


def test_a_reward_beyond_what_a_group_can_hold_is_refused() -> None:
    assert reward_that(lambda: None, [MAX_REWARD, -MAX_REWARD])(**COLUMNS) == [1e9, -1e9]
    with pytest.raises(RewardError, match=r"returned float -2000000000\.0 for row 1 .*row_index 8.*float32"):
        reward_that(lambda: None, [0.0, -2e9])(**COLUMNS)
