"""Grade responses against reference answers: by text first, then algebra in confined worker processes."""

import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from vgpo.answers import (
    MAX_SYMBOLIC_LENGTH,
    canonical_answer,
    compare_text,
    extract_boxed,
    strip_outer_box,
    symbolic_pair,
)
from vgpo.rewards.grammar import is_unsafe
from vgpo.rewards.process import Outcome, SymbolicWorker, WorkerServer

_LOGGER = logging.getLogger(__name__)

Pair = tuple[str, str]  # answer, reference answer


@dataclass
class GraderStatistics:
    """Counts since a grader was created; equal pairs of one call are checked, and counted, once."""

    symbolic: int = 0
    """Pairs given to the symbolic check and not rejected by it."""
    refused: int = 0
    """Pairs too long, too costly, or outside the grammar of the symbolic check, graded wrong."""
    timeouts: int = 0
    """Pairs whose check was killed after the time limit, graded wrong."""
    crashes: int = 0
    """Pairs whose check crashed two workers in a row, graded wrong."""


class Grader:
    """Grades in order of cost: equal text, choice letters, integers, and finally mathruler in separate processes.

    timeout: seconds for one symbolic check, > 0. memory_bytes: address-space limit of a worker (Linux; not possible on
    macOS). num_workers: maximum number of concurrent worker processes, at least 1, started and ended in each call.
    fallback_verifier: also accept what math-verify finds equal, with both sides boxed and neither a word; more lenient
    than the grader of VGPO's training. One call grades at a time. Safe to call from any thread, and in a forked
    process, which gets its own workers. Close it, or use it as a context manager. ImportError if math-verify is
    requested but not installed.
    """

    def __init__(
        self,
        *,
        timeout: float = 4.0,
        memory_bytes: int = 2 * 1024**3,
        num_workers: int = 2,
        fallback_verifier: Literal["math-verify"] | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}, expected seconds > 0")
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, expected at least 1")
        if fallback_verifier not in (None, "math-verify"):
            raise ValueError(f"fallback_verifier is {fallback_verifier!r}, expected None or 'math-verify'")
        if fallback_verifier and importlib.util.find_spec("math_verify") is None:
            raise ImportError(
                "fallback_verifier needs math-verify, which is not installed: pip install 'vgpo[math-verify]'"
            )
        self.timeout = timeout
        self.memory_bytes = memory_bytes
        self.num_workers = num_workers
        self.fallback_verifier = fallback_verifier
        self.statistics = GraderStatistics()
        self._become_owner()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server process of the workers. The next symbolic check starts another one."""
        self._server.close()

    def grade(self, predictions: Sequence[str], references: Sequence[str | int]) -> list[bool]:
        r"""Whether the last `\boxed{}` of each prediction contains the reference answer of the same row.

        predictions: complete responses. references: answers, bare or in one `\boxed{}`; ints are converted to text.
        A response without a closed, non-empty box is always wrong. TypeError for another type and ValueError for an
        empty reference answer or unequal lengths, naming the row.
        """
        boxes = [_box_of(row, prediction) for row, prediction in enumerate(predictions)]
        return self.grade_boxed(boxes, references)

    def grade_boxed(self, answers: Sequence[str | None], references: Sequence[str | int]) -> list[bool]:
        """As `grade`, for the content of the last boxes; None for a response without one."""
        _check_lengths(answers, references)
        pairs = [
            (answer and canonical_answer(answer), _as_reference(row, reference))
            for row, (answer, reference) in enumerate(zip(answers, references, strict=True))
        ]
        verdicts = [compare_text(answer, reference) for answer, reference in pairs]
        undecided = {
            row: symbolic_pair(answer, reference)
            for row, ((answer, reference), verdict) in enumerate(zip(pairs, verdicts, strict=True))
            if verdict is None and answer is not None
        }
        symbolic = self._check_all(list(dict.fromkeys(undecided.values())))
        return [symbolic[undecided[row]] if verdict is None else verdict for row, verdict in enumerate(verdicts)]

    def grade_verbatim(self, answers: Sequence[str], references: Sequence[str]) -> list[bool]:
        """mathruler's verdict on each answer, from unchanged texts, without rules for letters, units or names.

        An empty answer is wrong, and so is one of more than `MAX_SYMBOLIC_LENGTH` characters that is not equal to the
        reference answer. With `fallback_verifier`, math-verify is the fallback if mathruler says no.

        Args:
            answers: Contents of boxes.
            references: Reference answers without a box.

        Raises:
            ValueError: Unequal lengths.
        """
        _check_lengths(answers, references)
        pairs = list(zip(answers, references, strict=True))
        unequal = dict.fromkeys((answer, reference) for answer, reference in pairs if answer and answer != reference)
        found = self._check_all(list(unequal), refuse=_is_too_long)
        return [found.get((answer, reference), bool(answer)) for answer, reference in pairs]

    def _become_owner(self) -> None:
        """Create a lock and a server for this process."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._server = WorkerServer(self.timeout, self.memory_bytes, fallback=self.fallback_verifier is not None)

    def _check_all(self, pairs: Sequence[Pair], refuse: Callable[[str], bool] | None = None) -> dict[Pair, bool]:
        """One verdict per pair. Threads wait for workers that only process this batch.

        refuse: whether a text is not worth a check; default `is_unsafe`.
        """
        if self._owner != os.getpid():  # forked: the lock may be held by a thread that does not exist here
            self._become_owner()
        verdicts: dict[Pair, bool] = {}
        idle: list[SymbolicWorker] = []
        with self._lock:
            try:
                with ThreadPoolExecutor(self.num_workers, "vgpo-grader") as threads:
                    outcomes = threads.map(functools.partial(self._check, idle, refuse=refuse), pairs)
                    for pair, outcome in zip(pairs, outcomes, strict=True):
                        self._count(pair, outcome)
                        verdicts[pair] = outcome is Outcome.RIGHT
            finally:
                while idle:
                    idle.pop().close()
        return verdicts

    def _check(self, idle: list[SymbolicWorker], pair: Pair, refuse: Callable[[str], bool] | None = None) -> Outcome:
        """The outcome for one pair, from an idle or a new worker, which is reused if possible."""
        if any(map(refuse or is_unsafe, pair)):
            return Outcome.REFUSED
        outcome = self._check_once(idle, pair)
        # The pair may not be the cause: the system kills processes when memory is short, and workers end with their
        # server.
        return self._check_once(idle, pair) if outcome is Outcome.CRASH else outcome

    def _check_once(self, idle: list[SymbolicWorker], pair: Pair) -> Outcome:
        worker = self._take_worker(idle)
        try:
            return worker.check(*pair)
        finally:
            if worker.usable:
                idle.append(worker)
            else:
                worker.close()

    def _take_worker(self, idle: list[SymbolicWorker]) -> SymbolicWorker:
        while idle:
            worker = idle.pop()
            if worker.usable:
                return worker
            worker.close()
        return self._server.start_worker()

    def _count(self, pair: Pair, outcome: Outcome) -> None:
        answer, reference = pair
        self.statistics.refused += outcome is Outcome.REFUSED
        self.statistics.symbolic += outcome is not Outcome.REFUSED
        self.statistics.timeouts += outcome is Outcome.TIMEOUT
        self.statistics.crashes += outcome is Outcome.CRASH
        if outcome is Outcome.CRASH:
            _LOGGER.warning(
                "grading %.80r against %.80r ended the grader's worker and counts as wrong", answer, reference
            )
        if outcome is Outcome.TIMEOUT and self.statistics.timeouts == 1:
            _LOGGER.warning(
                "grading %.80r against %.80r took over %g s and counts as wrong; further "
                "time-outs are only counted (GraderStatistics.timeouts, metric grader/timeouts)",
                answer,
                reference,
                self.timeout,
            )


@functools.cache
def default_grader() -> Grader:
    """The grader of this process, with default limits, that `grade` and `accuracy_reward` use."""
    return Grader()


@functools.cache
def lenient_grader() -> Grader:
    """The grader of this process with math-verify as fallback. ImportError if it is not installed."""
    return Grader(fallback_verifier="math-verify")


def grade(predictions: Sequence[str], references: Sequence[str | int]) -> list[bool]:
    """`Grader.grade` of `default_grader()`."""
    return default_grader().grade(predictions, references)


def _box_of(row: int, prediction: object) -> str | None:
    if not isinstance(prediction, str):
        raise TypeError(
            f"row {row}: the prediction is {type(prediction).__name__}, expected str (the complete response)"
        )
    return extract_boxed(prediction)


def _check_lengths(answers: Sequence[object], references: Sequence[object]) -> None:
    if len(answers) != len(references):
        raise ValueError(
            f"{len(answers)} predictions but {len(references)} reference answers: pass one for each prediction"
        )


def _is_too_long(text: str) -> bool:
    return len(text) > MAX_SYMBOLIC_LENGTH


def _as_reference(row: int, reference: object) -> str:
    if isinstance(reference, bool) or not isinstance(reference, str | int):
        raise TypeError(
            f"row {row}: the answer is {type(reference).__name__}, expected str or int; write it as text in the "
            "dataset"
        )
    text = strip_outer_box(str(reference))
    if not text:
        raise ValueError(f"row {row}: the answer is empty, expected text to grade against; drop the row")
    return canonical_answer(text)
