"""Stand-ins for the symbolic check, loaded by the grader's server in its place."""

import importlib
import os
import signal
import time
from pathlib import Path

from vgpo.rewards.process import Checker, Outcome

STARTS = "STARTS"  # environment: a file with a line for each start of a server


def stand_in(fallback: bool) -> Checker:
    r"""Says right to "right" and to the worker's own "pid N", exits on "crash", hangs on "hang".

    Also where they are macros, as `\right`: a grader decides words itself.
    """

    def check(answer: str, reference: str) -> Outcome:
        answer = answer.removeprefix("\\")
        if answer == "crash":
            os._exit(3)
        if answer == "hang":
            time.sleep(30)
        return Outcome.RIGHT if answer in ("right", f"pid {os.getpid()}") else Outcome.WRONG

    return check


def evaluate(fallback: bool) -> Checker:
    """Runs the answer as Python, as a broken parser would; right where its `result` is the reference answer."""
    import ctypes  # noqa: F401 - all that hostile code may want is loaded
    import socket  # noqa: F401
    import subprocess  # noqa: F401

    state: dict = {}

    def check(answer: str, reference: str) -> Outcome:
        try:
            exec(answer, state)
            result = str(state.get("result"))
        except BaseException as error:  # noqa: BLE001 - the reference answer may be the name of an error
            result = type(error).__name__
        return Outcome.RIGHT if result == reference else Outcome.WRONG

    return check


def killed_twice(fallback: bool) -> Checker:
    """The first two servers are killed while they start."""
    with Path(os.environ[STARTS]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if len(Path(os.environ[STARTS]).read_text().split()) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return stand_in(fallback)


def always_killed(fallback: bool) -> Checker:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def late_import(fallback: bool) -> Checker:
    """Imports the module that the answer names, right if it is found: a check that survives a failed import."""
    import sympy  # noqa: F401 - as the symbolic check does

    def check(answer: str, reference: str) -> Outcome:
        try:
            importlib.import_module(answer)
        except ImportError:
            return Outcome.WRONG
        return Outcome.RIGHT

    return check
