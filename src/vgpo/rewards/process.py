"""The trainer's end of the symbolic check: a server of workers, and the workers of one batch."""

import enum
import json
import logging
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO

_LOGGER = logging.getLogger(__name__)

SERVER_MODULE = "vgpo.rewards.worker"
CHECKER = "vgpo.rewards.symbolic:load_checker"
"""The checker that the server loads: a function of `fallback` that returns the check of a pair."""

READY, CONFINED, LIMITED = b"r", b"c", b"l"
FORK, KILL = b"f", b"k"
PID_BYTES = 4

_START_SECONDS = 120.0  # importing sympy takes under a second, but not on a busy machine or a cold disk
_END_SECONDS = 5.0
_SHORTAGE = (
    "The machine may be short of memory, processes, open files (`ulimit -n`) or space for temporary files: free some, "
    "or lower num_workers."
)
_ATTEMPTS = 3  # the kernel may kill a process during its start when memory is short


class Outcome(enum.Enum):
    """Outcome of the symbolic check."""

    RIGHT = b"1"
    WRONG = b"0"
    REFUSED = b"r"
    TIMEOUT = b"t"
    CRASH = b"c"


Checker = Callable[[str, str], Outcome]
"""Compares an answer with a reference answer."""

_REPLIES = {outcome.value: outcome for outcome in (Outcome.RIGHT, Outcome.WRONG, Outcome.REFUSED)}


class SymbolicWorker:
    """A worker process. It ends when closed, and when this process ends in any way."""

    def __init__(self, server: "WorkerServer", pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._server = server
        self._channel = channel
        self._failed = False

    @property
    def usable(self) -> bool:
        """Whether the worker has answered every check, and neither ended nor written anything since."""
        return not self._failed and not is_readable(self._channel, 0.0)

    def await_ready(self) -> bytes:
        """CONFINED or LIMITED; empty if the worker did not start."""
        self._channel.settimeout(_START_SECONDS)
        ready = _receive(self._channel)
        self._channel.settimeout(self._server.seconds)
        return ready

    def check(self, answer: str, reference: str) -> Outcome:
        """The outcome for one pair; after TIMEOUT or CRASH the worker is no longer usable."""
        self._failed = True
        request = secrets.token_hex(8)  # a reply without this number is for another pair
        try:
            self._channel.sendall(json.dumps([request, answer, reference]).encode() + b"\n")
            reply = self._channel.recv(len(request) + 1)
        except TimeoutError:
            return Outcome.TIMEOUT
        except OSError:
            return Outcome.CRASH
        if reply[:-1] != request.encode() or reply[-1:] not in _REPLIES:
            return Outcome.CRASH
        self._failed = False
        return _REPLIES[reply[-1:]]

    def close(self) -> None:
        """Kill the worker."""
        self._channel.close()
        self._server.kill(self.pid)


class WorkerServer:
    """Starts workers from a process that has loaded all imports. That process starts with the first worker.

    It ends when closed, when collected, and when this process ends in any way.
    seconds: wall-clock limit of one check. num_bytes: address-space limit of a worker.
    fallback: whether workers use math-verify if mathruler says no.
    """

    def __init__(self, seconds: float, num_bytes: int, *, fallback: bool = False) -> None:
        self.seconds = seconds
        self.num_bytes = num_bytes
        self.fallback = fallback
        self._lock = threading.Lock()  # one request at a time
        self._server: _ServerProcess | None = None
        self._warned = False

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        return self._server.process.pid if self._server and self._server.process.poll() is None else None

    def start_worker(self) -> SymbolicWorker:
        """A new worker. A worker or server that is killed while it starts is replaced.

        RuntimeError if the server cannot load what it needs, with what it wrote, or if all attempts were killed or
        refused by the system.
        """
        reason = "ended while they started"
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt)
            try:
                worker = self._fork()
            except OSError as error:
                reason = f"could not be started ({error})"
                continue
            ready = worker.await_ready()
            if ready:
                self._warn_if_limited(ready)
                return worker
            worker.close()
        raise RuntimeError(f"{_ATTEMPTS} workers of the grader in a row {reason}. {_SHORTAGE}")

    def kill(self, pid: int) -> None:
        """End a worker. Workers of an ended server have ended with it."""
        with self._lock:
            if self._server is not None and not self._request(KILL + pid.to_bytes(PID_BYTES, "big")):
                self._end()

    def close(self) -> None:
        """End the server and its workers, if any. The next worker starts another one."""
        with self._lock:
            self._end()

    def _fork(self) -> SymbolicWorker:
        """A new worker, which may have ended already."""
        with self._lock:
            if self.pid is None:
                self._end()
                self._server = _start_server(self._arguments())
            channel, remote = socket.socketpair()
            with remote:
                reply = self._request(FORK, remote.fileno())
            if not reply:
                self._end()
        return SymbolicWorker(self, int.from_bytes(reply, "big"), channel)

    def _request(self, message: bytes, *descriptors: int) -> bytes:
        """The server's reply, empty if it has ended."""
        assert self._server is not None
        try:
            socket.send_fds(self._server.control, [message], descriptors)
            return self._server.control.recv(PID_BYTES)
        except OSError:
            return b""

    def _end(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None

    def _arguments(self) -> list[str]:
        return [CHECKER, str(int(self.fallback)), str(self.seconds), str(self.num_bytes)]

    def _warn_if_limited(self, ready: bytes) -> None:
        if ready == LIMITED and sys.platform.startswith("linux") and not self._warned:
            self._warned = True
            _LOGGER.warning(
                "this machine cannot filter the system calls of the grader's workers (it takes Linux with seccomp on "
                "x86-64 or arm64); they are restricted by resource limits only, see SECURITY.md"
            )


class _ServerProcess:
    """A fresh interpreter that runs the server."""

    def __init__(self, arguments: Sequence[str], messages: IO[bytes]) -> None:
        self.control, remote = socket.socketpair()
        self.control.settimeout(_START_SECONDS)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
        with remote:  # closed here, so that the server's end is the only one, and its death is seen
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", SERVER_MODULE, str(remote.fileno()), str(os.getpid()), *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                    pass_fds=[remote.fileno()],
                    start_new_session=True,  # Ctrl-C is for the trainer
                )
            except OSError:
                self.control.close()
                raise
        self.end = weakref.finalize(self, _end, self.process, self.control)


def _end(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    control.close()
    try:
        process.wait(_END_SECONDS)  # in a forked copy of the trainer this does nothing: the server is not its child
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start_server(arguments: Sequence[str]) -> _ServerProcess:
    """A ready server. RuntimeError if it ends by itself, or is killed or rejected in every attempt."""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        try:
            with tempfile.TemporaryFile() as messages:
                server = _ServerProcess(arguments, messages)
                if _receive(server.control) == READY:
                    return server
                server.end()
                messages.seek(0)
                written = messages.read().decode(errors="replace")[-2000:].strip() or "(nothing)"
        except OSError as error:
            reason, advice = f"the system refused it ({error})", _SHORTAGE
            continue
        status = server.process.returncode
        reason = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        advice = (
            "It needs mathruler, sympy and pylatexenc: reinstall vgpo if one is missing. The worker wrote:\n" + written
        )
        if status >= 0:
            break
    else:
        reason += f", {_ATTEMPTS} times in a row"
    raise RuntimeError(
        f"The grader's worker ({SERVER_MODULE}, run by {sys.executable}) did not start: {reason}. {advice}"
    )


def is_readable(connection: socket.socket, seconds: float) -> bool:
    """Whether `connection` has something to read, or its end, within `seconds`; for descriptors of any number."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _receive(connection: socket.socket) -> bytes:
    """The next byte; empty at the end, or after the time limit."""
    try:
        return connection.recv(1)
    except OSError:
        return b""
