"""Lanes: what a test costs, and so in which run it is. Every test is in exactly one.

A test without a lane marker is in the lane `fast`, or in `browser` if it uses the fixture of that name. A case that
needs a GPU is in the lane `gpu`, whatever lane its other cases are in. Two other lane markers are an error.
A test that trains a model or starts an interpreter fails in a lane where that is not allowed, so that a new test
cannot slow down the fast lane unnoticed.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

# The most expensive first: files of these lanes start first, so that no worker ends with a long one.
LANES = ("process", "slow", "train", "browser", "fast", "gpu")
TRAINING = "trains a model"
STARTING = "starts an interpreter"
ALLOWED = {
    "process": {TRAINING, STARTING},
    "slow": {TRAINING, STARTING},
    "gpu": {TRAINING, STARTING},
    "train": {TRAINING},
    "browser": set(),
    "fast": set(),
}
FIXES = {TRAINING: "mark it @pytest.mark.train", STARTING: "mark it @pytest.mark.process"}
# The server of the grader's workers loads no tensor library: every test of a reward may start one.
GRADER_SERVER = "vgpo.rewards.worker"

_actions: set[str] = set()
"""What the current test has done so far."""
_lane = pytest.StashKey[str]()


def _note_interpreter(event: str, args: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and args[0] == sys.executable and GRADER_SERVER not in args[1]:
        _actions.add(STARTING)


def _start_noted(process: BaseProcess, start: Callable[[BaseProcess], None] = BaseProcess.start) -> None:
    _actions.add(STARTING)
    start(process)


sys.addaudithook(_note_interpreter)
BaseProcess.start = _start_noted  # the processes of multiprocessing start by no audited event
register_optimizer_step_pre_hook(lambda *args: _actions.add(TRAINING))


def lane_of(item: pytest.Item) -> str:
    """The lane that a test names, or the one that its fixtures imply."""
    named = {mark.name for mark in item.iter_markers()}.intersection(LANES)
    if "browser" in getattr(item, "fixturenames", ()):
        named.add("browser")
    if "gpu" in named:
        return "gpu"
    if len(named) > 1:
        raise pytest.UsageError(
            f"{item.nodeid} is in the lanes {' and '.join(sorted(named))}, expected one: mark its cases apart with "
            "pytest.param(..., marks=...)"
        )
    return named.pop() if named else "fast"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank_of_file: dict[Any, int] = {}
    for item in items:
        item.stash[_lane] = lane = lane_of(item)
        item.user_properties.append(("lane", lane))  # which its reports carry
        item.add_marker(lane)
        rank_of_file[item.path] = min(LANES.index(lane), rank_of_file.get(item.path, len(LANES)))
    items.sort(key=lambda item: rank_of_file[item.path])


def _check_lane(item: pytest.Item) -> Iterator[None]:
    """Let a phase of a test run, and fail it for what its lane does not allow."""
    _actions.clear()
    yield
    lane = item.stash[_lane]
    for action in sorted(_actions - ALLOWED[lane]):
        pytest.fail(f"{item.nodeid} is in the lane {lane} but {action}: {FIXES[action]}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _check_lane(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _check_lane(item)


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str:
    cases = Counter(item.stash.get(_lane, "none") for item in items)
    return "cases by lane: " + ", ".join(f"{lane} {cases[lane]}" for lane in LANES)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Cases and seconds by lane; workers have sent their reports to this process."""
    cases: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        # The report of a test that ended its worker has no properties.
        if isinstance(report, pytest.TestReport) and (lane := dict(report.user_properties).get("lane")):
            cases[lane] += report.when == "setup"
            seconds[lane] += report.duration
    if cases:
        terminalreporter.section("lanes")
        for lane in sorted(cases, key=LANES.index):
            terminalreporter.line(f"{lane}: {cases[lane]} cases in {seconds[lane]:.0f} s")
