"""Requests of coroutines in batches: order, sizes, one thread, and errors that reach every request."""

import asyncio
import threading
import time

import pytest

from vgpo.suite.batching import Batcher


class Doubling:
    """Doubles numbers, and notes batches and threads."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        self.threads.add(threading.get_ident())
        return [2 * number for number in numbers]


def asked(batcher: Batcher[int, int], numbers: range) -> list[int | BaseException]:
    async def ask_all() -> list[int | BaseException]:
        return await asyncio.gather(*map(batcher, numbers), return_exceptions=True)

    return asyncio.run(ask_all())


def test_each_request_gets_its_own_result_and_batches_are_full_but_the_last() -> None:
    doubling = Doubling()
    assert asked(Batcher(doubling, 4), range(10)) == [2 * number for number in range(10)]
    assert list(map(len, doubling.batches)) == [4, 4, 2]


def test_all_batches_run_in_one_thread_that_is_not_the_event_loop_also_in_another_loop() -> None:
    doubling = Doubling()
    batcher = Batcher(doubling, 2)
    asked(batcher, range(4))
    asked(batcher, range(4))
    assert len(doubling.threads) == 1
    assert threading.get_ident() not in doubling.threads


def test_the_error_of_a_batch_reaches_each_of_its_requests_and_the_next_batch_runs() -> None:
    def fail_on_zero(numbers: list[int]) -> list[int]:
        return [1 // number for number in numbers]

    batcher = Batcher(fail_on_zero, 3)
    first = asked(batcher, range(3))
    assert [type(outcome) for outcome in first] == [ZeroDivisionError] * 3
    assert asked(batcher, range(1, 3)) == [1, 0]


def test_without_waiting_a_batch_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    doubling = Doubling()
    batcher = Batcher(doubling, 64, idle_seconds=0)

    async def ask_apart() -> None:
        for number in range(3):
            await batcher(number)

    started = time.monotonic()
    asyncio.run(ask_apart())
    assert doubling.batches == [[0], [1], [2]]
    assert time.monotonic() - started < 0.1


def test_a_thread_ends_when_it_is_closed_and_another_answers_later_requests() -> None:
    doubling = Doubling()
    with Batcher(doubling, 2) as batcher:
        assert asked(batcher, range(3)) == [0, 2, 4]
    thread = next(iter(doubling.threads))
    for _ in range(100):
        if thread not in {one.ident for one in threading.enumerate()}:
            break
        time.sleep(0.02)
    assert thread not in {one.ident for one in threading.enumerate()}
    assert asked(batcher, range(2)) == [0, 2]
    batcher.close()


def test_an_error_that_no_future_takes_does_not_leave_requests_waiting() -> None:
    def stop(numbers: list[int]) -> list[int]:
        raise StopIteration("no more")

    (outcome,) = asked(Batcher(stop, 1), range(1))
    assert isinstance(outcome, RuntimeError)
    assert "no more" in str(outcome)


def test_results_that_are_too_few_are_an_error() -> None:
    outcomes = asked(Batcher(lambda numbers: numbers[:1], 2), range(2))
    assert [str(outcome) for outcome in outcomes] == ["1 results for 2 requests"] * 2


def test_a_request_that_was_cancelled_does_not_stop_the_others() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(numbers: list[int]) -> list[int]:
        started.set()
        assert go_on.wait(10)
        return numbers

    async def cancel_one() -> int:
        batcher = Batcher(slow, 2)
        cancelled, kept = asyncio.ensure_future(batcher(1)), asyncio.ensure_future(batcher(2))
        await asyncio.to_thread(started.wait, 10)
        cancelled.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return await kept

    assert asyncio.run(cancel_one()) == 2
