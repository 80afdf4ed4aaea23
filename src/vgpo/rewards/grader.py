"""Grading of responses against golds: text first, algebra in a worker process that is killed on time-out."""

import functools
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from vgpo.rewards.answers import extract_boxed, is_refused, strip_outer_box, textual_verdict
from vgpo.rewards.process import SymbolicWorker

_LOGGER = logging.getLogger(__name__)


@dataclass
class GraderStatistics:
    """Counts since a grader was made; equal pairs of one call are checked, and counted, once."""

    symbolic: int = 0
    """Pairs given to the worker."""
    refused: int = 0
    """Pairs too long or too dangerous for the worker, graded wrong."""
    timeouts: int = 0
    """Pairs whose check was killed after the time limit, graded wrong."""
    crashes: int = 0
    """Pairs whose check ended the worker, graded wrong."""


class Grader:
    """Grades in order of cost: equal text, choice letter, integers, and last mathruler in its own process.

    timeout: seconds for one symbolic check, > 0. memory_bytes: address-space limit of the worker (Linux).
    The worker starts at the first pair that needs it and serves one thread at a time. Safe to call from any
    thread, and in a forked process, which gets its own worker. Close it, or use it as a context manager.
    """

    def __init__(self, *, timeout: float = 4.0, memory_bytes: int = 2 * 1024**3) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}, expected seconds > 0")
        self.timeout = timeout
        self.memory_bytes = memory_bytes
        self.statistics = GraderStatistics()
        self._worker: SymbolicWorker | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker, if there is one. The next symbolic check would start another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def grade(self, predictions: Sequence[str], golds: Sequence[str | int]) -> list[bool]:
        r"""Whether the last `\boxed{}` of each prediction holds the gold of the same row.

        predictions: whole responses. golds: answers, bare or in one `\boxed{}`; ints are taken as text.
        A response without a closed, non-empty box is wrong whatever the gold is.
        TypeError for another type and ValueError for an empty gold or unequal lengths, naming the row.
        """
        if len(predictions) != len(golds):
            raise ValueError(
                f"{len(predictions)} predictions but {len(golds)} golds: give one gold for each prediction"
            )
        pairs = [
            (extract_boxed(_as_response(row, prediction)), _as_gold(row, gold))
            for row, (prediction, gold) in enumerate(zip(predictions, golds, strict=True))
        ]
        verdicts = [textual_verdict(answer, gold) for answer, gold in pairs]
        open_pairs = dict.fromkeys(
            (answer, gold)
            for (answer, gold), verdict in zip(pairs, verdicts, strict=True)
            if verdict is None and answer is not None
        )
        symbolic = self._check_all(open_pairs)
        return [symbolic[pair] if verdict is None else verdict for pair, verdict in zip(pairs, verdicts, strict=True)]

    def _check_all(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str | None, str], bool]:
        if self._owner != os.getpid():  # forked: the lock may be held by a thread that does not exist here
            self._lock, self._worker, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            return {(answer, gold): self._check(answer, gold) for answer, gold in pairs}

    def _check(self, answer: str, gold: str) -> bool:
        if is_refused(answer) or is_refused(gold):
            self.statistics.refused += 1
            return False
        self.statistics.symbolic += 1
        if self._worker is None or not self._worker.usable:
            self.close()
            self._worker = SymbolicWorker(self.timeout, self.memory_bytes)
        try:
            return self._worker.check(answer, gold)
        except TimeoutError:
            self.statistics.timeouts += 1
            if self.statistics.timeouts == 1:
                _LOGGER.warning(
                    "grading %.80r against %.80r took over %g s and counts as wrong; further "
                    "time-outs are only counted (GraderStatistics.timeouts, metric grader/timeouts)",
                    answer,
                    gold,
                    self.timeout,
                )
        except (EOFError, OSError):
            self.statistics.crashes += 1
            _LOGGER.warning("grading %.80r against %.80r ended the grader's worker and counts as wrong", answer, gold)
        self.close()
        return False


@functools.cache
def default_grader() -> Grader:
    """The grader of this process, with default limits, that `grade` and `accuracy_reward` use."""
    return Grader()


def grade(predictions: Sequence[str], golds: Sequence[str | int]) -> list[bool]:
    """`Grader.grade` of `default_grader()`."""
    return default_grader().grade(predictions, golds)


def _as_response(row: int, prediction: object) -> str:
    if not isinstance(prediction, str):
        raise TypeError(f"row {row}: the prediction is {type(prediction).__name__}, expected str (the whole response)")
    return prediction


def _as_gold(row: int, gold: object) -> str:
    if isinstance(gold, bool) or not isinstance(gold, str | int):
        raise TypeError(
            f"row {row}: the answer is {type(gold).__name__}, expected str or int; write it as text in the data set"
        )
    text = strip_outer_box(str(gold))
    if not text:
        raise ValueError(f"row {row}: the answer is empty, expected text to grade against; drop the row")
    return text
