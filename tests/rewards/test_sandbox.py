"""A worker whose parser evaluates hostile text on purpose: what it can still do, which is to compute."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpo.rewards import Grader, process, sandbox
from vgpo.rewards.process import Outcome, SymbolicWorker, WorkerServer

pytestmark = pytest.mark.skipif(sandbox.system_call_filter() is None, reason="Linux on x86-64 or arm64")

# Numbers of system calls on x86-64, for those that Python has no function for.
RAW = {
    "openat2": 437,
    "unlinkat": 263,
    "tgkill": 234,
    "rt_sigqueueinfo": 129,
    "pidfd_send_signal": 424,
    "ptrace": 101,
    "process_vm_writev": 311,
    "clone": 56,
    "clone3": 435,
    "execveat": 322,
    "io_uring_setup": 425,
    "memfd_create": 319,
    "shmget": 29,
    "prlimit64": 302,
    "seccomp": 317,
    "prctl": 157,
    "bpf": 321,
    "keyctl": 250,
    "mount": 165,
    "sendmsg": 46,
    "fork of the 32-bit table": 0x40000000 + 57,
}


@pytest.fixture(scope="module")
def worker() -> Iterator[SymbolicWorker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "CHECKER", "tests.rewards.checkers:evaluate")
        server = WorkerServer(20.0, 2 * 1024**3)
        worker = server.start_worker()
        yield worker
        worker.close()
        server.close()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("unharmed")
    return path


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the same user, as the trainer is."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        assert child.poll() is None
        child.kill()


@pytest.mark.parametrize(
    "code",
    [
        "open(path).read()",
        "open(path, 'w')",
        "os.open(path, os.O_RDONLY)",
        "os.remove(path)",
        "os.rename(path, path + '2')",
        "os.truncate(path, 0)",
        "os.chmod(path, 0)",
        "os.symlink(path, path + '2')",
        "os.mkdir(path + '2')",
        "os.listdir('/')",
        "os.stat(path)",
        "os.chdir('/')",
    ],
)
def test_files_are_out_of_reach(worker: SymbolicWorker, victim: Path, code: str) -> None:
    assert worker.check(f"import os; path = {str(victim)!r}; {code}", "PermissionError") is Outcome.RIGHT
    assert victim.read_text() == "unharmed"
    assert list(victim.parent.iterdir()) == [victim]


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("os.kill(pid, 9)", "PermissionError"),
        ("os.killpg(pid, 9)", "PermissionError"),
        ("os.kill(os.getpid(), 0)", "PermissionError"),
        ("os.pidfd_open(pid)", "PermissionError"),
        ("os.setpriority(os.PRIO_PROCESS, pid, 19)", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.execv('/bin/true', ['true'])", "PermissionError"),
        ("subprocess.run(['true'])", "PermissionError"),
        ("result = os.system('true') != 0", "True"),
        ("threading.Thread(target=print).start()", "RuntimeError"),
        ("socket.socket()", "PermissionError"),
        ("socket.socketpair()", "PermissionError"),
        ("os.pipe()", "PermissionError"),
        ("os.dup(0)", "PermissionError"),
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))", "ValueError"),
    ],
)
def test_processes_and_the_network_are_out_of_reach(
    worker: SymbolicWorker, bystander: "subprocess.Popen[bytes]", code: str, result: str
) -> None:
    text = f"import os, subprocess, socket, threading, resource; pid = {bystander.pid}; {code}"
    assert worker.check(text, result) is Outcome.RIGHT


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("number", RAW.values(), ids=RAW)
def test_raw_system_calls_are_denied(worker: SymbolicWorker, number: int) -> None:
    call = f"libc.syscall({number}, 0, 0, 0, 0, 0, 0), ctypes.get_errno()"
    text = f"import ctypes; libc = ctypes.CDLL(None, use_errno=True); result = {call}"
    assert worker.check(text, "(-1, 1)") is Outcome.RIGHT  # EPERM


def test_memory_and_the_clock_are_left(worker: SymbolicWorker) -> None:
    assert worker.check("import time; time.sleep(0.01); result = len(bytearray(10**8))", "100000000") is Outcome.RIGHT


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_standard_streams_lead_nowhere(worker: SymbolicWorker, descriptor: int) -> None:
    assert worker.check(f"import os; result = os.write({descriptor}, b'x')", "1") is Outcome.RIGHT
    assert Path(f"/proc/{worker.pid}/fd/{descriptor}").samefile(os.devnull)


def test_a_worker_holds_nothing_but_its_channel(worker: SymbolicWorker) -> None:
    links = [str(file.readlink()) for file in Path(f"/proc/{worker.pid}/fd").iterdir()]
    assert len(links) == 4
    assert sum(link.startswith("socket:") for link in links) == 1


def test_state_does_not_outlive_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:evaluate")
    poison = r"\boxed{import builtins; builtins.poison = result = 1}"
    ask = r"\boxed{import builtins; result = hasattr(builtins, 'poison')}"
    monkeypatch.setattr("vgpo.rewards.grader.is_unsafe", lambda text: False)
    monkeypatch.setattr("vgpo.rewards.grader.compare_text", lambda answer, gold: None)
    monkeypatch.setattr("vgpo.rewards.grader.symbolic_pair", lambda answer, gold: (answer, gold))
    with Grader(num_workers=1) as grader:
        assert grader.grade([poison, ask], ["1", "True"]) == [True, True]
        assert grader.grade([ask], ["False"]) == [True]


def test_a_kernel_without_filters_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = WorkerServer(20.0, 2 * 1024**3)
    for _ in range(2):
        server._warn_if_limited(process.LIMITED)
    assert caplog.text.count("cannot filter the system calls") == 1


def test_a_refused_filter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(22, "prctl")

    monkeypatch.setattr(sandbox, "_prctl", refuse)
    allowed = sandbox.system_call_filter()
    assert allowed is not None
    assert sandbox._filter_system_calls(allowed) is False


def test_both_machines_allow_the_same_calls() -> None:
    x86, arm = sandbox._ALLOWED.values()
    assert x86.keys() == arm.keys()
    assert len(set(x86.values())) == len(set(arm.values())) == len(x86)
    assert not {"kill", "fork", "clone", "open", "openat", "socket", "connect", "execve", "unlink"} & x86.keys()
