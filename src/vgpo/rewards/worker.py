"""The server of the grader's workers: `python -m vgpo.rewards.worker SOCKET OWNER CHECKER FALLBACK SECONDS BYTES`.

A fresh interpreter, neither forked from the trainer (which has threads and a GPU) nor started by `multiprocessing`
(which would run the user's training script again, and fails inside a daemonic process). It loads everything that a
check needs, never reads an answer, and ends with its owner. Workers confine themselves before they read the first
answer.
"""

import contextlib
import gc
import importlib
import importlib.abc
import io
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from vgpo.rewards.process import CONFINED, FORK, KILL, LIMITED, PID_BYTES, READY, Checker, is_readable
from vgpo.rewards.sandbox import confine, end_with_parent

_OWNER_CHECK_SECONDS = 1.0
_LOADED_EARLY = {"antlr4", "latex2sympy2_extended", "math_verify", "mathruler", "mpmath", "pylatexenc", "sympy"}


def main() -> None:
    descriptor, owner, checker, fallback, seconds, num_bytes = sys.argv[1:]
    module, _, function = checker.partition(":")
    check = getattr(importlib.import_module(module), function)(fallback == "1")
    gc.collect()
    gc.freeze()  # so that a worker's collections copy no page of what is loaded
    with socket.socket(fileno=int(descriptor)) as control:
        control.sendall(READY)
        Server(control, check, float(seconds), int(num_bytes)).serve(int(owner))


class Server:
    """Forks and kills workers as its owner asks, one request at a time."""

    def __init__(self, control: socket.socket, check: Checker, seconds: float, num_bytes: int) -> None:
        self.control = control
        self.check = check
        self.seconds = seconds
        self.num_bytes = num_bytes
        self.children: set[int] = set()

    def serve(self, owner: int) -> None:
        while os.getppid() == owner:
            if not is_readable(self.control, _OWNER_CHECK_SECONDS):
                continue
            command, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
            if command == FORK:
                self.control.sendall(self.fork(descriptors[0]).to_bytes(PID_BYTES, "big"))
            elif command == KILL:
                number = self.control.recv(PID_BYTES, socket.MSG_WAITALL)
                self.kill(int.from_bytes(number, "big"))
                self.control.sendall(number)
            else:
                break
        for pid in list(self.children):
            self.kill(pid)

    def fork(self, channel: int) -> int:
        """The new worker's process id, 0 if the system cannot create one."""
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            end_with_parent(server)
            work(channel, self.check, self.seconds, self.num_bytes)
        os.close(channel)
        if pid > 0:
            self.children.add(pid)
        return max(pid, 0)

    def kill(self, pid: int) -> None:
        if pid in self.children:  # not reaped, so the id is still valid
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.children.remove(pid)


def work(channel: int, check: Checker, seconds: float, num_bytes: int) -> NoReturn:
    """A worker: reads [request, answer, reference] as JSON lines; replies the request and an outcome byte."""
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, _LateImport())
    requests = io.BufferedReader(io.FileIO(channel))
    with contextlib.suppress(BaseException):
        os.write(channel, CONFINED if confine(channel, num_bytes) else LIMITED)
        while line := requests.readline():
            signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # ends a worker if its owner could not
            request, answer, reference = json.loads(line)
            outcome = check(answer, reference)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(channel, request.encode() + outcome.value)
    os._exit(0)


class _LateImport(importlib.abc.MetaPathFinder):
    """Ends the worker if a check imports a module that it can no longer read: a crash is better than a wrong
    verdict."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package = fullname.partition(".")[0]
        if package in _LOADED_EARLY or package in sys.stdlib_module_names:
            os._exit(1)


if __name__ == "__main__":
    main()
