"""The trainer's end of the symbolic worker.

The worker is a fresh interpreter, neither forked (the trainer has threads and a GPU) nor started by
`multiprocessing` (which would run the user's training script again, and refuses inside a daemonic process).
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO

WORKER_MODULE = "vgpo.rewards.worker"
_START_SECONDS = 120.0  # importing sympy takes under a second, but not on a busy machine or a cold disk


class SymbolicWorker:
    """A running worker process; ends when closed, when collected, or when this process ends in any way.

    seconds: wall-clock limit of one check. num_bytes: address-space limit of the worker.
    second_opinion: whether it asks math-verify where mathruler says no.
    RuntimeError if the worker does not start, with what it wrote.
    """

    def __init__(self, seconds: float, num_bytes: int, *, second_opinion: bool = False) -> None:
        self.seconds = seconds
        self._reply_owed = False
        self._connection, remote = Pipe()
        command = [sys.executable, "-m", WORKER_MODULE, str(remote.fileno()), str(seconds), str(num_bytes)]
        command += ["math-verify"] if second_opinion else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONSAFEPATH": "1",
        }
        with tempfile.TemporaryFile() as messages, remote:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=[remote.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer
            )
            remote.close()  # so that the worker's end is the only one, and its death is seen
            self._finalizer = weakref.finalize(self, _end, self._process, self._connection)
            self._await_ready(messages)

    @property
    def usable(self) -> bool:
        """Whether the worker lives and owes no reply (one is owed after a time-out or a Ctrl-C)."""
        return not self._reply_owed and self._process.poll() is None

    def check(self, answer: str, gold: str) -> bool:
        """The verdict on one pair. TimeoutError after `seconds`; EOFError or OSError if the worker died."""
        self._reply_owed = True
        self._connection.send_bytes(json.dumps([answer, gold]).encode())
        if not self._connection.poll(self.seconds):
            raise TimeoutError(f"the symbolic check took longer than {self.seconds:g} s")
        reply = self._connection.recv_bytes()
        self._reply_owed = False
        return reply == b"1"

    def close(self) -> None:
        """Kill the worker. May be called again."""
        self._finalizer()

    def _await_ready(self, messages: IO[bytes]) -> None:
        try:
            ready = self._connection.poll(_START_SECONDS) and self._connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.close()
            messages.seek(0)
            written = messages.read().decode(errors="replace")[-2000:].strip()
            raise RuntimeError(
                f"The grader's worker ({WORKER_MODULE}, run by {sys.executable}) did not start. It "
                "needs mathruler, sympy and pylatexenc: reinstall vgpo if one is missing. The worker wrote:\n"
                f"{written or '(nothing)'}"
            )


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    connection.close()
    process.kill()  # in a forked copy of the trainer this does nothing: the worker is not its child
    process.wait()
