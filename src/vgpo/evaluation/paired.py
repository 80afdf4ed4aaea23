"""Compare two checkpoints on the same rows: differences with bootstrap intervals, and McNemar's exact test.

The difference is always second minus first checkpoint, in [-1, 1]. Rows are paired, so that variation in row
difficulty does not widen the interval.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vgpo.evaluation.answers import GradedAnswer, Question
from vgpo.evaluation.errors import EvaluationError
from vgpo.resampling import percentile_interval, resamples

MAX_NAMED = 5  # rows in a message
TOLERANCE = 1e-12  # tolerance for means of the same verdicts summed in another order

Row = tuple[str, int]  # id of a row, and its number in its source


class ComparisonError(EvaluationError):
    """Two evaluations that cannot be compared; the message names what differs."""


@dataclass(frozen=True)
class PairedRows:
    """The rows of a task that both checkpoints answered; arrays of one length, n.

    Attributes:
        task: Name of the benchmark.
        first: Share of correct answers to each row by the first checkpoint, in [0, 1].
        second: The same by the second.
        clusters: Number of each row's cluster, from 0; variants of one problem have the same.
        num_samples: Answers to each row.
    """

    task: str
    first: np.ndarray
    second: np.ndarray
    clusters: np.ndarray
    num_samples: int

    @cached_property
    def resampled(self) -> np.ndarray:
        """The difference of the means in each bootstrap resample, (10,000,).

        Clusters are resampled with replacement, each with all its rows. Tasks are resampled independently.
        """
        sums = np.bincount(self.clusters, weights=self.second - self.first)
        sizes = np.bincount(self.clusters)
        drawn = resamples(len(sizes), zlib.crc32(self.task.encode()))
        return np.concatenate([sums[places].sum(axis=1) / sizes[places].sum(axis=1) for places in drawn])


@dataclass(frozen=True)
class Difference:
    """A difference of two checkpoints.

    Attributes:
        first: Mean over rows of the share of correct answers by the first checkpoint, in [0, 1].
        second: The same by the second.
        difference: second - first.
        low: Lower end of its 95 % interval from the paired bootstrap.
        high: Upper end.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskDifference(Difference):
    """A difference on one task.

    Attributes:
        task: Name of the benchmark.
        num_rows: Rows compared.
        num_clusters: Number of independent clusters of rows.
        won: Rows that the second checkpoint answers correctly more often; greedily: only the second.
        lost: Rows that the first answers correctly more often; greedily: only the first.
        both: Rows that both answer correctly equally often, more than never.
        neither: Rows that neither ever answers correctly.
        p_value: Of McNemar's exact test, in [0, 1]; None for several answers to each row.
    """

    task: str
    num_rows: int
    num_clusters: int
    won: int
    lost: int
    both: int
    neither: int
    p_value: float | None


@dataclass(frozen=True)
class AverageDifference(Difference):
    """A difference of plain means over tasks.

    Attributes:
        name: Of the average.
        tasks: The averaged tasks.
    """

    name: str
    tasks: tuple[str, ...]


def check_protocols(first: str, second: str) -> None:
    """Raises:
    ComparisonError: The protocols of two evaluations differ.
    """
    if first != second:
        raise ComparisonError(
            f"the evaluations have different protocols: the first {first!r}, the second {second!r}; evaluate both "
            "under the same --protocol"
        )


def pair_rows(
    task: str, first: Iterable[GradedAnswer], second: Iterable[GradedAnswer], *, num_dropped: int = 0
) -> PairedRows:
    """Join the answers of two checkpoints to one task by id and number of the row.

    Args:
        task: Name of the benchmark.
        first: Answers of the first checkpoint; an oversized one is wrong.
        second: Answers of the second.
        num_dropped: Further rows without answers, which count as wrong for both, as in the accuracy.

    Raises:
        ComparisonError: The questions are not the same, or one has more answers than another; names the first rows.
    """
    ours, theirs = by_row(first), by_row(second)
    check_same_rows(task, ours, theirs)
    rows = list(ours)
    counts = {len(answers) for found in (ours, theirs) for answers in found.values()}
    if len(counts) != 1:
        raise ComparisonError(
            f"{task}: found rows with {' and '.join(map(str, sorted(counts)))} answers, expected the same number to "
            "each row in both evaluations; finish both with the same `vgpo eval` command and protocol"
            if counts
            else f"{task}: no row was answered in both evaluations"
        )
    padding = np.zeros(num_dropped)
    clusters = numbered_clusters([ours[row][0].question for row in rows])
    return PairedRows(
        task=task,
        first=np.concatenate([[share_right(ours[row]) for row in rows], padding]),
        second=np.concatenate([[share_right(theirs[row]) for row in rows], padding]),
        clusters=np.concatenate([clusters, clusters.max() + 1 + np.arange(num_dropped)]),
        num_samples=counts.pop(),
    )


def compare_task(rows: PairedRows) -> TaskDifference:
    """The difference on one task.

    McNemar's test assumes independent rows. For clustered rows its p is too small: use the interval, which resamples
    complete clusters.
    """
    differences = rows.second - rows.first
    won, lost = int((differences > TOLERANCE).sum()), int((differences < -TOLERANCE).sum())
    tied = np.abs(differences) <= TOLERANCE
    low, high = percentile_interval(rows.resampled)
    return TaskDifference(
        first=float(rows.first.mean()),
        second=float(rows.second.mean()),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        task=rows.task,
        num_rows=len(differences),
        num_clusters=int(rows.clusters.max()) + 1,
        won=won,
        lost=lost,
        both=int((tied & (rows.first > 0)).sum()),
        neither=int((tied & (rows.first == 0)).sum()),
        p_value=mcnemar_p_value(won, lost) if rows.num_samples == 1 else None,
    )


def compare_average(name: str, tasks: Sequence[str], rows: Mapping[str, PairedRows]) -> AverageDifference | None:
    """The difference of a plain mean over tasks, None if none of them was compared.

    Each task is resampled independently. (MathVerse-V has rows of MathVerse: the interval of an average over both is
    slightly too narrow.)

    Args:
        name: Of the average.
        tasks: All tasks of the average; those that were not compared are left out.
        rows: By the name of the task.
    """
    found = [rows[task] for task in tasks if task in rows]
    if not found:
        return None
    first, second = (float(np.mean([getattr(one, side).mean() for one in found])) for side in ("first", "second"))
    low, high = percentile_interval(np.mean([one.resampled for one in found], axis=0))
    return AverageDifference(
        first=first,
        second=second,
        difference=second - first,
        low=float(low),
        high=float(high),
        name=name,
        tasks=tuple(one.task for one in found),
    )


def mcnemar_p_value(won: int, lost: int) -> float:
    """Two-sided exact test that, on the rows where two checkpoints differ, each was equally likely to win.

    min(1, 2 P(X <= min(won, lost))), X binomial with n = won + lost and 1/2; 1 for n = 0.
    """
    number, least = won + lost, min(won, lost)
    term = total = 1  # binomial coefficients, exact: C(n, 0), and their sum up to C(n, least)
    for k in range(least):
        term = term * (number - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**number)


def by_row(answers: Iterable[GradedAnswer]) -> dict[Row, list[GradedAnswer]]:
    found: dict[Row, list[GradedAnswer]] = defaultdict(list)
    for answer in answers:
        found[answer.question.id, answer.row].append(answer)
    return dict(sorted(found.items(), key=lambda item: item[0][1]))


def share_right(answers: Sequence[GradedAnswer]) -> float:
    return sum(answer.correct for answer in answers) / len(answers)


def numbered_clusters(questions: Sequence[Question]) -> np.ndarray:
    """The number of each question's cluster, (n,); a question without one is its own cluster."""
    numbers: dict[tuple[str, str | int], int] = {}
    keys = [("cluster", one.cluster) if one.cluster is not None else ("row", one.row) for one in questions]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)


def check_same_rows(
    task: str, first: Mapping[Row, list[GradedAnswer]], second: Mapping[Row, list[GradedAnswer]]
) -> None:
    """Raises:
    ComparisonError: The rows, or their questions or reference answers, differ; names the first ones.
    """
    asked = [{row: wording(answers[0].question) for row, answers in side.items()} for side in (first, second)]
    faults = {
        "only in the first": [row for row in asked[0] if row not in asked[1]],
        "only in the second": [row for row in asked[1] if row not in asked[0]],
        "with another question or reference answer": [
            row for row in asked[0] if row in asked[1] and asked[0][row] != asked[1][row]
        ],
    }
    found = [f"{named(rows)} {what}" for what, rows in faults.items() if rows]
    if found:
        raise ComparisonError(
            f"{task}: the evaluations asked different questions: {'; '.join(found)}. Evaluate both on the same data "
            "with the same --limit"
        )


def wording(question: Question) -> tuple[str, str]:
    return question.problem, question.answer


def named(rows: Sequence[Row]) -> str:
    """The first rows by number and id, and their total number."""
    names = ", ".join(f"{number} ({name!r})" for name, number in rows[:MAX_NAMED])
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {names}{more}"
