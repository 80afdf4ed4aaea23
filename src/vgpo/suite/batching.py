"""Requests of many coroutines, answered in batches by one worker thread."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

IDLE_SECONDS = 0.1


@dataclass(frozen=True)
class _Request(Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[Result]"
    loop: asyncio.AbstractEventLoop


class Batcher(Generic[Item, Result]):
    """Collects requests of coroutines, and answers them in batches.

    A batch is run when it is full, or when no request has come for `idle_seconds`. All batches run in one daemon
    thread, so that the event loop never waits for a model, and torch sees a single thread. The exception of a batch is
    raised in each of its requests. As a context manager, or by `close`, it ends its thread.

    Args:
        run: Answers a batch, one result for each item, in order.
        size: Largest batch.
        idle_seconds: 0 runs what is there already, without waiting for more.
    """

    def __init__(
        self, run: Callable[[list[Item]], Sequence[Result]], size: int, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.run = run
        self.size = size
        self.idle_seconds = idle_seconds
        self._requests: queue.SimpleQueue[_Request[Item, Result] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Batcher[Item, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread after the current batch: it keeps `run`, and so a model, alive. A request starts another."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread = None

    async def __call__(self, item: Item) -> Result:
        """The result for one item."""
        loop = asyncio.get_running_loop()
        request: _Request[Item, Result] = _Request(item, loop.create_future(), loop)
        self._requests.put(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vgpo-batches", daemon=True)
            self._thread.start()
        return await request.future

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                results = self.run([request.item for request in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
            except BaseException as error:  # noqa: BLE001  (whoever waits must not wait forever)
                for request in batch:
                    _settle(request, error=error)
            else:
                for request, result in zip(batch, results, strict=True):
                    _settle(request, result=result)

    def _next_batch(self) -> list[_Request[Item, Result]]:
        """The next requests; none once the thread is to end."""
        batch: list[_Request[Item, Result]] = []
        while len(batch) < self.size:
            try:
                wait = self.idle_seconds if batch else None
                request = self._requests.get(timeout=wait) if wait != 0 else self._requests.get_nowait()
            except queue.Empty:
                break
            if request is None:
                if batch:
                    self._requests.put(None)  # for the next round
                break
            batch.append(request)
        return batch


def _settle(
    request: _Request[Item, Result], *, result: Result | None = None, error: BaseException | None = None
) -> None:
    """Pass an outcome to the loop of a request, which may have ended since."""

    def set_outcome() -> None:
        if request.future.done():  # cancelled
            return
        if error is not None:
            # A future takes no StopIteration.
            request.future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
        else:
            request.future.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
        request.loop.call_soon_threadsafe(set_outcome)
