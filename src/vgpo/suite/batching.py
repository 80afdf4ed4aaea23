"""Requests of many coroutines, answered in batches by one worker thread."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_IDLE_SECONDS = 0.1  # without another request, after which a batch that is not full is run


@dataclass(frozen=True)
class _Request(Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[Result]"
    loop: asyncio.AbstractEventLoop


class Batcher(Generic[Item, Result]):
    """Collects what coroutines ask for, and answers it together.

    A batch is run when it is full, or when no request has come for a tenth of a second. All batches run in one daemon
    thread, so that the event loop never waits for a model, and torch sees a single thread. The exception of a batch is
    raised in each of its requests.

    Args:
        run: Answers a batch, one result for each item, in order.
        size: Largest batch.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], size: int) -> None:
        self.run = run
        self.size = size
        self._requests: queue.SimpleQueue[_Request[Item, Result]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

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
        while True:
            batch = self._next_batch()
            try:
                results = self.run([request.item for request in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
            except BaseException as error:  # noqa: BLE001  (whoever waits must not wait for ever)
                for request in batch:
                    _settle(request, error=error)
            else:
                for request, result in zip(batch, results, strict=True):
                    _settle(request, result=result)

    def _next_batch(self) -> list[_Request[Item, Result]]:
        batch = [self._requests.get()]
        while len(batch) < self.size:
            try:
                batch.append(self._requests.get(timeout=_IDLE_SECONDS))
            except queue.Empty:
                break
        return batch


def _settle(
    request: _Request[Item, Result], *, result: Result | None = None, error: BaseException | None = None
) -> None:
    """Pass an outcome to the loop of a request, which may have ended since."""

    def set_outcome() -> None:
        if request.future.done():  # cancelled
            return
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(result)  # type: ignore[arg-type]

    if not request.loop.is_closed():
        request.loop.call_soon_threadsafe(set_outcome)
