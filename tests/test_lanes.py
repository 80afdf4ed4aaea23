"""Every test is in one lane, and does there only what the lane allows."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from tests import lanes
from tests.lanes import ALLOWED, LANES, STARTING, TRAINING

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.process

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test module beside this one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # to import them takes seconds

    def run(body: str, *words: str) -> pytest.RunResult:
        pytester.makeini("[pytest]\nmarkers =\n" + "".join(f"    {lane}\n" for lane in LANES))
        pytester.makepyfile(f"import pytest\nfrom tests import lanes\n{body}")
        return pytester.runpytest_inprocess("-p", "tests.lanes", "-p", "no:cacheprovider", *words)

    return run


def note(action: str) -> str:
    return f"lanes._actions.add({action!r})"


def take_a_step() -> None:
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()


def fork() -> None:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()


@pytest.mark.parametrize(
    ("act", "action"),
    [
        (take_a_step, {TRAINING}),
        (fork, {STARTING}),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), {STARTING}),
        (lambda: subprocess.run(["true"], check=True), set()),
    ],
)
def test_what_a_test_does_is_noted(act: Callable[[], object], action: set[str]) -> None:
    lanes._actions.clear()
    act()
    assert lanes._actions == action


@pytest.mark.parametrize("action", [TRAINING, STARTING])
@pytest.mark.parametrize("lane", LANES)
def test_a_test_may_do_what_its_lane_allows_and_nothing_else(run: Run, lane: str, action: str) -> None:
    result = run(f"@pytest.mark.{lane}\ndef test_it():\n    {note(action)}")
    if action in ALLOWED[lane]:
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*test_it is in the lane {lane} but {action}: mark it @pytest.mark.*"])


def test_an_unmarked_test_is_held_to_the_fast_lane(run: Run) -> None:
    fixture = f"@pytest.fixture(scope='module')\ndef trained():\n    {note(TRAINING)}\n"
    result = run(f"{fixture}\ndef test_it(trained):\n    pass", "-m", "fast")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_it is in the lane fast but trains a model*"])


def test_a_failing_test_fails_for_its_own_reason(run: Run) -> None:
    result = run(f"def test_it():\n    {note(TRAINING)}\n    raise ValueError('its own')")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*in the lane fast*")


def test_two_lanes_are_an_error(run: Run) -> None:
    result = run("@pytest.mark.slow\n@pytest.mark.train\ndef test_it():\n    pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it is in the lanes slow and train, expected one*"])


def test_a_case_on_a_gpu_is_in_the_lane_gpu_alone(run: Run) -> None:
    cases = "@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])"
    result = run(f"{cases}\n@pytest.mark.train\ndef test_it(device):\n    pass")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["cases by lane: *train 1, browser 0, fast 0, gpu 1", "train: 1 cases *", "gpu: 1 cases *"]
    )


def test_a_test_that_opens_pages_is_in_the_lane_browser(run: Run) -> None:
    result = run("@pytest.fixture\ndef browser():\n    pass\n\ndef test_it(browser):\n    pass", "-m", "browser")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cases by lane: *browser 1, fast 0, gpu 0", "browser: 1 cases in *"])


def test_files_with_the_most_expensive_lanes_come_first(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_a(): pass", test_b="def test_b(): pass")
    result = run("def test_c1(): pass\n\n@pytest.mark.process\ndef test_c2(): pass", "-v")
    names = [line.split("::")[1].split()[0] for line in result.outlines if "PASSED" in line]
    assert names == ["test_c1", "test_c2", "test_a", "test_b"]
