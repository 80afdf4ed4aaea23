"""The server of the grader's workers: how fast it forks them, what it survives, and when it ends."""

import errno
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.rewards.checkers import STARTS
from vgpo.rewards import Grader, process
from vgpo.rewards.process import Outcome, WorkerServer

PAIR = ([r"\boxed{\right}"], ["a"])


@pytest.fixture
def make_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerServer]]:
    servers: list[WorkerServer] = []

    def make(checker: str, seconds: float = 20.0) -> WorkerServer:
        monkeypatch.setattr(process, "CHECKER", f"tests.rewards.checkers:{checker}")
        servers.append(WorkerServer(seconds, 2 * 1024**3))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_new_worker_starts_at_once() -> None:
    server = WorkerServer(20.0, 2 * 1024**3, fallback=True)
    server.start_worker().close()
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        worker = server.start_worker()
        seconds.append(time.perf_counter() - start)
        worker.close()
    server.close()
    assert statistics.median(seconds) < 0.05, seconds


def test_a_server_that_is_killed_while_it_starts_is_replaced(
    make_server: Callable[..., WorkerServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTS, str(tmp_path / "starts"))
    with closing(make_server("killed_twice").start_worker()) as worker:
        assert worker.check("right", "a") is Outcome.RIGHT
    assert len((tmp_path / "starts").read_text().split()) == 3


def test_a_server_that_is_always_killed_is_an_error(make_server: Callable[..., WorkerServer]) -> None:
    with pytest.raises(RuntimeError, match="did not start: killed by signal 9, 3 times in a row"):
        make_server("always_killed").start_worker()


def test_a_missing_checker_is_an_error_at_once(make_server: Callable[..., WorkerServer]) -> None:
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match=r"exit status 1.*reinstall vgpo(.|\n)*no attribute 'missing'"):
        make_server("missing").start_worker()
    assert time.perf_counter() - start < 30.0


def test_a_worker_that_ends_while_it_starts_is_replaced(
    make_server: Callable[..., WorkerServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server("stand_in")
    server.start_worker().close()
    await_ready = process.SymbolicWorker.await_ready
    killed: list[int] = []

    def kill_first(worker: process.SymbolicWorker) -> bytes:
        if not killed:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGSTOP)
            os.kill(worker.pid, signal.SIGKILL)
            await_ready(worker)  # the byte that it may have written before
        return await_ready(worker)

    monkeypatch.setattr(process.SymbolicWorker, "await_ready", kill_first)
    with closing(server.start_worker()) as worker:
        assert worker.pid not in killed
        assert worker.check("right", "a") is Outcome.RIGHT


def test_workers_that_all_end_while_they_start_are_an_error(
    make_server: Callable[..., WorkerServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.SymbolicWorker, "await_ready", lambda worker: b"")
    with pytest.raises(RuntimeError, match="3 workers of the grader in a row ended while they started"):
        make_server("stand_in").start_worker()


def test_a_server_killed_between_two_calls_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader() as grader:
        assert grader.grade(*PAIR) == [True]
        pid = grader._server.pid
        os.kill(pid, signal.SIGKILL)
        assert grader.grade(*PAIR) == [True]
        assert grader._server.pid != pid
        assert grader.statistics.crashes == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_workers_end_with_a_server_that_is_killed(make_server: Callable[..., WorkerServer]) -> None:
    server = make_server("stand_in")
    with closing(server.start_worker()) as worker:
        worker._channel.sendall(b'["0", "hang", "a"]\n')
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: has_ended(worker.pid), 10.0)


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("forked", [False, True], ids=["alone", "with a forked child that lives on"])
def test_server_and_workers_end_with_an_owner_that_is_killed(tmp_path: Path, forked: bool) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, time
            from vgpo.rewards import process
            process.CHECKER = "tests.rewards.checkers:stand_in"
            server = process.WorkerServer(60.0, 2 * 1024**3)
            worker = server.start_worker()
            worker._channel.sendall(b'["0", "hang", "a"]\\n')
            child = os.fork() if {forked} else 0
            if {forked} and child == 0:
                time.sleep(60)
            print(server.pid, worker.pid, child, flush=True)
            time.sleep(60)
            """
        )
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=paths) as owner:
        server, worker, child = map(int, owner.stdout.readline().split())
        owner.kill()
        assert wait_until(lambda: has_ended(server) and has_ended(worker), 15.0)
        if child:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set on Linux only")
def test_an_import_that_comes_too_late_ends_the_worker(make_server: Callable[..., WorkerServer]) -> None:
    with closing(make_server("late_import").start_worker()) as worker:
        assert worker.check("sympy.core", "a") is Outcome.RIGHT
        assert worker.check("numpy", "a") is Outcome.WRONG  # for a check, as if it were not installed
        assert worker.check("sympy.crypto", "a") is Outcome.CRASH


def test_a_worker_cannot_reply_to_what_it_was_not_asked(make_server: Callable[..., WorkerServer]) -> None:
    claim_the_next = "import os\nfor fd in range(3, 300):\n try: os.write(fd, b'1')\n except OSError: pass"
    with closing(make_server("evaluate").start_worker()) as worker:
        assert worker.check("result = 1", "1") is Outcome.RIGHT
        assert worker.usable
        assert worker.check(claim_the_next, "2") is Outcome.CRASH
        assert not worker.usable


def test_a_trainer_with_many_open_files_grades(monkeypatch: pytest.MonkeyPatch) -> None:
    """`select.select` knows descriptors below 1024 only."""
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1050)]
    try:
        with Grader(num_workers=1) as grader:
            assert grader.grade([r"\boxed{\right}", r"\boxed{\wrong}", r"\boxed{\right}"], ["a", "b", "c"]) == [
                True,
                False,
                True,
            ]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refusing(function: Callable[..., object], error: OSError, times: int) -> Callable[..., object]:
    """`function`, which the system refuses so many times first."""
    left = [error] * times

    def call(*args: object, **kwargs: object) -> object:
        if left:
            raise left.pop()
        return function(*args, **kwargs)

    return call


REFUSALS = {
    "no process": ("subprocess.Popen", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
    "no temporary file": ("tempfile.TemporaryFile", OSError(errno.ENOSPC, "No space left on device")),
    "no sockets": ("socket.socketpair", OSError(errno.EMFILE, "Too many open files")),
}


@pytest.mark.parametrize(("name", "error"), REFUSALS.values(), ids=REFUSALS)
def test_a_start_that_the_system_refuses_twice_is_repeated(
    make_server: Callable[..., WorkerServer], monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    module, function = name.split(".")
    at = getattr(process, module)
    monkeypatch.setattr(process.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(at, function, refusing(getattr(at, function), error, 2))
    with closing(make_server("stand_in").start_worker()) as worker:
        assert worker.check("right", "a") is Outcome.RIGHT


@pytest.mark.parametrize(("name", "error"), REFUSALS.values(), ids=REFUSALS)
def test_a_start_that_the_system_always_refuses_is_one_error_that_says_why(
    make_server: Callable[..., WorkerServer], monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    module, function = name.split(".")
    at = getattr(process, module)
    monkeypatch.setattr(process.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(at, function, refusing(getattr(at, function), error, 99))
    with pytest.raises(RuntimeError, match=rf"{error.strerror}(.|\n)*short of memory, processes, open files"):
        make_server("stand_in").start_worker()


def test_sockets_of_a_worker_that_the_system_refuses_are_an_error(
    make_server: Callable[..., WorkerServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server("stand_in")
    server.start_worker().close()
    monkeypatch.setattr(process.time, "sleep", lambda seconds: None)
    full = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(process.socket, "socketpair", refusing(process.socket.socketpair, full, 99))
    with pytest.raises(RuntimeError, match=r"3 workers of the grader in a row could not be started .*Too many open"):
        server.start_worker()


def test_a_server_that_ends_before_it_kills_a_worker_is_replaced(make_server: Callable[..., WorkerServer]) -> None:
    server = make_server("stand_in")
    worker = server.start_worker()
    os.kill(server.pid, signal.SIGKILL)
    worker.close()
    with closing(server.start_worker()) as worker:
        assert worker.check("right", "a") is Outcome.RIGHT


def test_a_server_that_has_ended_can_be_closed(make_server: Callable[..., WorkerServer]) -> None:
    server = make_server("stand_in")
    with closing(server.start_worker()):
        os.kill(server.pid, signal.SIGKILL)
        server.close()
        assert server.pid is None


def test_a_pair_whose_worker_was_killed_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    check = process.SymbolicWorker.check
    killed: list[int] = []

    def kill_first(worker: process.SymbolicWorker, *pair: str) -> Outcome:
        if not killed:
            killed.append(worker.pid)
            worker._channel.shutdown(socket.SHUT_RDWR)
            os.kill(grader._server.pid, signal.SIGKILL)
        return check(worker, *pair)

    monkeypatch.setattr(process.SymbolicWorker, "check", kill_first)
    with Grader() as grader:
        assert grader.grade(*PAIR) == [True]
    assert grader.statistics.crashes == 0
