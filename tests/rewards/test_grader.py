import json
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpo.rewards import Grader, grade, process
from vgpo.rewards.process import Outcome

SLOW = "9**(9*9*9*9*9*9*9*9*9)"  # passes the refusal, then computes a power of 387 million digits
SYMBOLIC = (r"\boxed{\sqrt{12}}", r"2\sqrt{3}")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def boxed(answer: str) -> str:
    return rf"So the answer is \boxed{{{answer}}}."


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_keep_their_order_and_equal_pairs_are_checked_once(grader: Grader) -> None:
    symbolic_before = grader.statistics.symbolic
    predictions = [boxed("8"), boxed(r"\sqrt{12}"), boxed("7"), boxed(r"\sqrt{13}"), boxed(r"\sqrt{12}"), "none"]
    golds = [7, r"2\sqrt{3}", 7, r"2\sqrt{3}", r"\boxed{2\sqrt{3}}", "7"]
    assert grader.grade(predictions, golds) == [False, True, True, False, True, False]
    assert grader.statistics.symbolic - symbolic_before == 2


@pytest.mark.parametrize("response", ["The answer is None.", r"\boxed{None", r"\boxed{}", ""])
def test_no_answer_is_never_right(grader: Grader, response: str) -> None:
    assert grader.grade([response], ["None"]) == [False]


@pytest.mark.parametrize(
    ("predictions", "golds", "error", "message"),
    [
        ([boxed("1"), boxed("2")], ["1", 2.5], TypeError, "row 1: the answer is float, expected str or int"),
        ([boxed("1")], [True], TypeError, "row 0: the answer is bool, expected str or int"),
        ([boxed("1")], [None], TypeError, "row 0: the answer is NoneType, expected str or int"),
        ([5], ["1"], TypeError, "row 0: the prediction is int, expected str"),
        ([boxed("1")], [" "], ValueError, "row 0: the answer is empty"),
        ([boxed("1")], [], ValueError, "1 predictions but 0 reference answers"),
    ],
)
def test_bad_input(predictions: list, golds: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grade(predictions, golds)


def test_text_alone_starts_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SERVER_MODULE", "vgpo.does_not_exist")
    with Grader() as grader:
        assert grader.grade([boxed("7"), boxed("b"), boxed("8")], ["7", "B", "7"]) == [True, True, False]


@pytest.mark.process
def test_worker_that_cannot_start_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SERVER_MODULE", "vgpo.does_not_exist")
    with Grader() as grader, pytest.raises(RuntimeError, match=r"No module named vgpo[.]does_not_exist"):
        grader.grade([SYMBOLIC[0]], [SYMBOLIC[1]])


def test_hanging_check_is_killed_and_the_next_one_works() -> None:
    with Grader(timeout=1.0) as grader:
        start = time.perf_counter()
        assert grader.grade([boxed(SLOW)] * 4, ["1.5"] * 4) == [False] * 4
        assert 1.0 < time.perf_counter() - start < 30.0  # with the start of the worker; unbounded it takes hours
        assert grader.grade([SYMBOLIC[0]], [SYMBOLIC[1]]) == [True]
        assert grader.statistics.timeouts == 1


def test_timeouts_are_counted_each_and_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader(timeout=0.1) as grader:
        assert grader.grade([boxed(r"\hang")] * 2, ["a", "b"]) == [False, False]
        assert grader.statistics.timeouts == 2
    assert caplog.text.count("took over 0.1 s") == 1


@pytest.mark.parametrize("answer", ["9**9**9**9", "999999999!", "9^{9^{9^{9}}}", "7" * 1_000_000 + "+x"])
def test_towers_factorials_and_megabytes_cost_nothing(grader: Grader, answer: str) -> None:
    symbolic_before, start = grader.statistics.symbolic, time.process_time()
    assert grader.grade([boxed(answer)], ["1.5"]) == [False]
    assert time.process_time() - start < 1.0
    assert grader.statistics.symbolic == symbolic_before


def test_crash_is_counted_and_grading_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader() as grader:
        assert grader.grade([boxed(r"\right"), boxed(r"\crash")], ["a", "a"]) == [True, False]
        assert grader.grade([boxed(r"\right"), boxed(r"\wrong")], ["a", "a"]) == [True, False]
        assert grader.statistics.crashes == 1
    assert "ended the grader's worker" in caplog.text


def test_worker_killed_while_idle_is_replaced_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader() as grader:
        idle = [grader._server.start_worker()]
        os.kill(idle[0].pid, signal.SIGKILL)
        assert select.select([idle[0]._channel], [], [], 30)[0]
        assert grader._check(idle, ("right", "a")) is Outcome.RIGHT
        idle.pop().close()


def test_interrupted_check_does_not_answer_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")

    def interrupt(worker: process.SymbolicWorker, answer: str, reference: str) -> Outcome:
        worker._channel.sendall(json.dumps(["0", answer, reference]).encode() + b"\n")
        raise KeyboardInterrupt

    with Grader() as grader:
        grader.grade([boxed(r"\right")], ["a"])
        with monkeypatch.context() as patch:
            patch.setattr(process.SymbolicWorker, "check", interrupt)
            with pytest.raises(KeyboardInterrupt):
                grader.grade([boxed(r"\right")], ["a"])
        assert grader.grade([boxed(r"\wrong")], ["a"]) == [False]


def test_hanging_checks_are_waited_for_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    predictions = [boxed(r"\right"), *map(boxed, [r"\hang"] * 4), boxed(r"\wrong"), boxed(r"\right")]
    golds = ["a", "b", "c", "d", "e", "a", "f"]
    with Grader(timeout=2.0, num_workers=4) as grader:
        start = time.perf_counter()
        assert grader.grade(predictions, golds) == [True, *[False] * 5, True]
        assert time.perf_counter() - start < 6.0  # one after the other: over 8
        assert (grader.statistics.symbolic, grader.statistics.timeouts) == (7, 4)


@pytest.mark.parametrize(("num_workers", "num_pairs", "expected"), [(2, 5, {1, 2}), (3, 1, {1}), (1, 5, {1})])
def test_workers_are_started_as_they_are_needed_and_for_one_call(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, num_pairs: int, expected: set[int]
) -> None:
    """Where the first worker has checked all pairs before a second is needed, one is enough."""
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    pids: list[int] = []
    start_worker = process.WorkerServer.start_worker

    def record(server: process.WorkerServer) -> process.SymbolicWorker:
        worker = start_worker(server)
        pids.append(worker.pid)
        return worker

    monkeypatch.setattr(process.WorkerServer, "start_worker", record)
    with Grader(num_workers=num_workers) as grader:
        for _ in range(2):
            num_before = len(pids)
            assert all(grader.grade([boxed(r"\right")] * num_pairs, list("abcde")[:num_pairs]))
            assert len(pids) - num_before in expected
            assert len(set(pids)) == len(pids)
            assert not any(map(is_running, pids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": 0}, "timeout is 0, expected seconds > 0"),
        ({"num_workers": 0}, "num_workers is 0, expected at least 1"),
        ({"fallback_verifier": "sympy"}, "fallback_verifier is .sympy., expected None or .math-verify."),
    ],
)
def test_settings_that_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grader(**arguments)


def test_threads_share_a_grader(grader: Grader) -> None:
    results: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        results[number] = grader.grade([boxed(rf"\sqrt{{{4 * number}}}")], [rf"2\sqrt{{{number}}}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in (2, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {number: [True] for number in (2, 3, 5, 7)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set on Linux only")
def test_worker_has_a_memory_limit_and_writes_no_file(grader: Grader) -> None:
    worker = grader._server.start_worker()
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    worker.close()
    assert re.search(rf"Max address space +{grader.memory_bytes} ", limits)
    for name in ("file size", "core file size", "open files", "processes"):
        assert re.search(rf"Max {name} +0 ", limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set on Linux only")
def test_an_answer_cannot_take_more_memory_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:evaluate")
    with Grader(memory_bytes=1024**3) as grader:
        worker = grader._server.start_worker()
        assert worker.check("[0] * 200000000", "MemoryError") is Outcome.RIGHT  # a list of 1.6 GB
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert int(re.search(r"VmPeak:\s+(\d+) kB", status)[1]) <= 1024**2
        assert worker.check("result = 7", "7") is Outcome.RIGHT
        worker.close()


def _exit_zero_if_right(grader: Grader) -> None:
    sys.exit(0 if grader.grade([boxed(r"\right")], ["a"]) == [True] else 1)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # it is what is tested
def test_forked_daemon_gets_its_own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHECKER", "tests.rewards.checkers:stand_in")
    with Grader() as grader:
        assert grader.grade([boxed(r"\right")], ["a"]) == [True]
        pid = grader._server.pid
        child = multiprocessing.get_context("fork").Process(target=_exit_zero_if_right, args=(grader,), daemon=True)
        with grader._lock:  # as if another thread were grading at that moment
            child.start()
            child.join(timeout=30)
        assert child.exitcode == 0
        assert grader.grade([boxed(r"\wrong"), boxed(r"\right")], ["a", "a"]) == [False, True]
        assert grader._server.pid == pid


@pytest.mark.process
def test_script_without_main_guard_grades_once_leaves_no_process_and_imports_no_sympy(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            r"""
            import sys
            from vgpo.rewards import default_grader, grade
            print(grade([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"]), default_grader()._server.pid, end=" ")
            print("sympy" in sys.modules)
            """
        )
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    verdict, pid, has_sympy = run.stdout.split()
    assert (verdict, has_sympy, run.stderr) == ("[True]", "False", "")
    assert not is_running(int(pid))


def test_easy_gradings_are_quick() -> None:
    predictions = [boxed(str(number % 10)) + "x" * 2000 for number in range(5000)]
    start = time.process_time()
    verdicts = grade(predictions, [3] * 5000)
    assert time.process_time() - start < 3.0
    assert sum(verdicts) == 500
