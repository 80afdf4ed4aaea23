"""Scores of benchmarks: accuracies with errors, and the paper's averages."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vgpo.evaluation.accuracy import wilson_interval
from vgpo.evaluation.answers import GradedAnswer
from vgpo.evaluation.benchmarks import BENCHMARKS, SUITES, Benchmark
from vgpo.evaluation.errors import EvaluationError

NOT_ASKED = "(not asked)"
UNNAMED = "(none)"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy over rows of a benchmark.

    The denominator is `num_scored` = asked + dropped + oversized: a row that could not be asked counts as wrong, so
    that no row is dropped silently. It is less than `num_rows` only if a limit was set.

    Attributes:
        num_rows: Rows that belong to the benchmark in its source.
        num_asked: Rows that a model has answered.
        num_dropped: Rows that could not be used.
        num_oversized: Rows whose prompt is too long for the model.
        num_samples: Responses to each row, k of avg@k; 0 if no row was asked.
        num_correct: Correct responses.
        num_truncated: Responses truncated at the token limit.
        num_no_box: Responses without a box.
        accuracy: Mean over `num_scored` rows of the share of correct responses, in [0, 1].
        standard_error: Of the accuracy, as in `clustered_standard_error`; None if there is one cluster.
        low: Lower end of its 95 % interval, as in `accuracy_interval`.
        high: Upper end.
        num_clusters: Groups of rows that are variants of one problem; None if rows are treated as independent.
    """

    num_rows: int
    num_asked: int
    num_dropped: int
    num_oversized: int
    num_samples: int
    num_correct: int
    num_truncated: int
    num_no_box: int
    accuracy: float
    standard_error: float | None
    low: float
    high: float
    num_clusters: int | None

    @property
    def num_scored(self) -> int:
        return self.num_asked + self.num_dropped + self.num_oversized

    @property
    def is_limited(self) -> bool:
        """Whether only some rows of the benchmark were scored."""
        return self.num_scored < self.num_rows


@dataclass(frozen=True, kw_only=True)
class TaskScores(Scores):
    """Scores of one benchmark.

    Attributes:
        task: Name of the benchmark.
        title: As in the paper.
        group: As in `Benchmark`.
        num_expected: Rows in the paper's evaluation, or in PAPO-Eval's if `num_rows` equals that; None if unknown.
        categories: Scores by category, largest first; empty without categories. Dropped and oversized rows are in
        `NOT_ASKED`, rows without a category in `UNNAMED`, so that `num_scored` adds up.
    """

    task: str
    title: str
    group: str
    num_expected: int | None
    categories: dict[str, Scores]

    @property
    def is_partial(self) -> bool:
        """Whether not all rows of the benchmark were scored: a limit was set, or the source is incomplete."""
        return self.is_limited or self.num_expected not in (None, self.num_rows)


@dataclass(frozen=True, kw_only=True)
class Average:
    """A plain mean of the accuracies of tasks.

    Attributes:
        name: As in the paper.
        accuracy: The mean, in [0, 1].
        standard_error: sqrt(sum of squared standard errors) / number of tasks, which assumes independent tasks
            (although MathVerse-V's rows are rows of MathVerse); None if a task has none.
        num_tasks: Number of tasks in it.
        missing: Names of tasks of the paper's average that are missing here.
        partial: Names of tasks in it that are partial themselves.
    """

    name: str
    accuracy: float
    standard_error: float | None
    num_tasks: int
    missing: tuple[str, ...]
    partial: tuple[str, ...]

    @property
    def is_partial(self) -> bool:
        """Whether it differs from the paper's average: a task is missing or partial."""
        return bool(self.missing or self.partial)


@dataclass(frozen=True)
class SuiteScores:
    """Scores of several tasks, and the paper's averages with at least one of these tasks."""

    tasks: list[TaskScores]
    averages: list[Average]


AVERAGES = {"Avg-Math": SUITES["vgpo-math"], "Avg-Vision": SUITES["vgpo-vision"], "Overall": SUITES["vgpo"]}


def task_scores(
    benchmark: Benchmark,
    graded: Sequence[GradedAnswer],
    *,
    num_rows: int,
    num_asked: int,
    dropped: int = 0,
    oversized: int = 0,
) -> TaskScores:
    """The scores of one benchmark.

    Args:
        benchmark: Which one.
        graded: Responses, equally many per row.
        num_rows: Rows of the benchmark in its source.
        num_asked: Rows that were asked, all of which have responses.
        dropped: Rows to be asked that could not be used.
        oversized: Rows to be asked whose prompt is too long.

    Raises:
        EvaluationError: No row, rows with missing responses, or more rows than the benchmark has.
    """
    by_row: dict[int, list[GradedAnswer]] = {}
    for answer in graded:
        by_row.setdefault(answer.row, []).append(answer)
    _check_complete(benchmark, by_row, num_rows, num_asked, dropped + oversized)
    scores = _scores(list(by_row.values()), num_rows=num_rows, dropped=dropped, oversized=oversized)
    return TaskScores(
        **vars(scores),
        task=benchmark.name,
        title=benchmark.title,
        group=benchmark.group,
        num_expected=benchmark.papo_rows if num_rows == benchmark.papo_rows else benchmark.num_rows,
        categories=_category_scores(list(by_row.values()), dropped, oversized),
    )


def scores_of_answers(
    benchmark: Benchmark, graded: Sequence[GradedAnswer], *, num_rows: int, num_questions: int, num_dropped: int
) -> TaskScores:
    """The scores of one benchmark from the answers to all its questions, including oversized ones.

    Args:
        benchmark: Which one.
        graded: Responses, equally many per question.
        num_rows: Rows of the benchmark in its source.
        num_questions: Rows to ask.
        num_dropped: Further rows that could not be used.

    Raises:
        EvaluationError: As in `task_scores`.
    """
    oversized = len(oversized_rows(graded))
    return task_scores(
        benchmark,
        [answer for answer in graded if not answer.oversized],
        num_rows=num_rows,
        num_asked=num_questions - oversized,
        dropped=num_dropped,
        oversized=oversized,
    )


def oversized_rows(graded: Iterable[GradedAnswer]) -> list[int]:
    """The rows whose prompt filled the model's context."""
    return sorted({answer.row for answer in graded if answer.oversized})


def suite_scores(tasks: Iterable[TaskScores]) -> SuiteScores:
    """The scores of tasks in the order of `BENCHMARKS`, then others, and the paper's averages of them: Avg-Math of
    six, Avg-Vision of four, Overall the plain mean of all ten.
    """
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    found = sorted(tasks, key=lambda task: order.get(task.task, len(order)))
    averages = [average_of(name, names, found) for name, names in AVERAGES.items()]
    return SuiteScores(found, [average for average in averages if average is not None])


def average_of(name: str, names: Sequence[str], tasks: Sequence[TaskScores]) -> Average | None:
    """The mean of the tasks with one of `names`; None if there is none."""
    chosen = [task for task in tasks if task.task in names]
    if not chosen:
        return None
    errors = [task.standard_error for task in chosen if task.standard_error is not None]
    total = math.sqrt(math.fsum(error * error for error in errors))
    return Average(
        name=name,
        accuracy=math.fsum(task.accuracy for task in chosen) / len(chosen),
        standard_error=total / len(chosen) if len(errors) == len(chosen) else None,
        num_tasks=len(chosen),
        missing=tuple(other for other in names if other not in {task.task for task in chosen}),
        partial=tuple(task.task for task in chosen if task.is_partial),
    )


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """The standard error of the mean of values that are correlated within clusters.

    With n values x_i, mean m and C clusters it is sqrt(C / (C - 1) * sum over clusters of (sum over the cluster's i of
    (x_i - m))^2) / n, the sandwich estimator. If each value is its own cluster this is s / sqrt(n), with s^2 = sum
    (x_i - m)^2 / (n - 1).

    Args:
        values: (n,).
        clusters: (n,), equal for values of one cluster.

    Returns:
        The error; None for fewer than two clusters.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        return None
    array = np.array(values, dtype=float)
    sums = np.bincount([numbers[cluster] for cluster in clusters], weights=array - array.mean())
    return math.sqrt(len(numbers) / (len(numbers) - 1) * float(sums @ sums)) / len(array)


def accuracy_interval(
    accuracy: float, standard_error: float | None, num_rows: int, num_samples: int
) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy, for the effective number of independent rows with its standard error.

    That number is n (p (1 - p) / (n - 1)) / SE^2, at most one per response: n for independent rows that are asked
    once, less for rows that are correlated within clusters, more for rows that are asked several times. It is n where
    this is undefined (p is 0 or 1, or there is no error).
    """
    variance = accuracy * (1 - accuracy)
    effective = float(num_rows)
    if standard_error and num_rows > 1 and variance > 0:
        effective = num_rows * variance / (num_rows - 1) / standard_error**2
    effective = min(effective, num_rows * max(num_samples, 1))
    return wilson_interval(accuracy * effective, effective)


def _scores(rows: Sequence[Sequence[GradedAnswer]], *, num_rows: int, dropped: int, oversized: int) -> Scores:
    """Scores over rows with their responses, and over rows that were not asked."""
    answers = [answer for row in rows for answer in row]
    shares = [sum(answer.correct for answer in row) / len(row) for row in rows]
    named = [row[0].question.cluster for row in rows]
    clusters: list[Hashable] = [name if name is not None else number for number, name in enumerate(named)]
    lost = dropped + oversized
    clusters += [(number,) for number in range(lost)]
    values = [*shares, *[0.0] * lost]
    accuracy = math.fsum(values) / len(values)
    error = clustered_standard_error(values, clusters)
    num_samples = max(map(len, rows), default=0)
    low, high = accuracy_interval(accuracy, error, len(values), num_samples)
    return Scores(
        num_rows=num_rows,
        num_asked=len(rows),
        num_dropped=dropped,
        num_oversized=oversized,
        num_samples=num_samples,
        num_correct=sum(answer.correct for answer in answers),
        num_truncated=sum(answer.truncated for answer in answers),
        num_no_box=sum(answer.predicted is None for answer in answers),
        accuracy=accuracy,
        standard_error=error,
        low=low,
        high=high,
        num_clusters=len(set(clusters)) if any(name is not None for name in named) else None,
    )


def _category_scores(rows: Sequence[Sequence[GradedAnswer]], dropped: int, oversized: int) -> dict[str, Scores]:
    by_category: dict[str | None, list[Sequence[GradedAnswer]]] = {}
    for row in rows:
        by_category.setdefault(row[0].question.category, []).append(row)
    if not by_category.keys() - {None}:
        return {}
    found = {
        UNNAMED if name is None else name: _scores(chosen, num_rows=len(chosen), dropped=0, oversized=0)
        for name, chosen in sorted(by_category.items(), key=lambda pair: (-len(pair[1]), str(pair[0])))
    }
    if lost := dropped + oversized:
        found[NOT_ASKED] = _scores([], num_rows=lost, dropped=dropped, oversized=oversized)
    return found


def _check_complete(
    benchmark: Benchmark, by_row: dict[int, list[GradedAnswer]], num_rows: int, num_asked: int, lost: int
) -> None:
    """Raise EvaluationError unless each asked row has all its responses, and there are no more rows than expected."""
    if num_asked + lost < 1:
        raise EvaluationError(f"{benchmark.title}: no row was asked, expected at least one; raise the limit")
    if num_asked + lost > num_rows:
        raise EvaluationError(
            f"{benchmark.title}: {num_asked} rows were asked and {lost} were not, but the benchmark has {num_rows}; "
            "evaluate it again"
        )
    if len(by_row) != num_asked:
        raise EvaluationError(
            f"{benchmark.title}: {len(by_row)} rows have answers, but {num_asked} were asked; resume the evaluation"
        )
    counts = {len(answers) for answers in by_row.values()}
    if len(counts) > 1:
        row = next(row for row, answers in by_row.items() if len(answers) < max(counts))
        raise EvaluationError(
            f"{benchmark.title}: row {row} has {len(by_row[row])} of {max(counts)} answers; resume the evaluation"
        )
