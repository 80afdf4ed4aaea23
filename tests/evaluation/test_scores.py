"""Accuracies, their errors, and averages, against arithmetic in comments and against naive loops."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from vgpo.evaluation import wilson_interval
from vgpo.evaluation.answers import GradedAnswer, Question
from vgpo.evaluation.benchmarks import BENCHMARKS, SUITES
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scores import (
    NOT_ASKED,
    UNNAMED,
    TaskScores,
    accuracy_interval,
    clustered_standard_error,
    suite_scores,
    task_scores,
)

COUNTING, MATHVERSE = BENCHMARKS["counting"], BENCHMARKS["mathverse"]


def graded(row: int, *correct: bool, cluster: str | None = None, category: str | None = None, **fields) -> list:
    asked = Question(row=row, id=str(row), problem="a", answer="7", cluster=cluster, category=category)
    settings = {"completion": "", "truncated": False, "predicted": "7", **fields}
    return [
        GradedAnswer(row=row, sample=sample, question=asked, correct=right, **settings)
        for sample, right in enumerate(correct)
    ]


def scores_of(task: str, right: int, rows: int, **settings) -> TaskScores:
    """Scores of a small benchmark: it is complete with `num_rows` rows."""
    settings = {"num_rows": rows, "num_asked": rows, **settings}
    answers = [answer for row in range(rows) for answer in graded(row, row < right)]
    benchmark = replace(BENCHMARKS[task], num_rows=settings["num_rows"], papo_rows=None)
    return task_scores(benchmark, answers, **settings)


def naive_error(values: list[float], clusters: list) -> float:
    mean = sum(values) / len(values)
    total = 0.0
    for cluster in set(clusters):
        inner = 0.0
        for value, other in zip(values, clusters, strict=True):
            if other == cluster:
                inner += value - mean
        total += inner * inner
    number = len(set(clusters))
    return math.sqrt(number / (number - 1) * total) / len(values)


def test_rows_that_were_not_asked_count_as_wrong() -> None:
    scores = scores_of("counting", 6, 7, num_rows=10, dropped=2, oversized=1)
    assert scores.accuracy == pytest.approx(6 / 10)  # 6 right of 7 asked, 2 dropped, 1 oversized
    assert (scores.num_scored, scores.num_asked, scores.num_dropped, scores.num_oversized) == (10, 7, 2, 1)
    assert not scores.is_limited
    assert (scores.low, scores.high) == pytest.approx(wilson_interval(6, 10))


def test_a_limit_leaves_rows_out_of_the_denominator_and_says_so() -> None:
    scores = scores_of("counting", 3, 4, num_rows=200, dropped=1)
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.is_limited


def test_counts_are_of_responses() -> None:
    answers = [*graded(0, True, False, truncated=True), *graded(1, False, False, predicted=None)]
    scores = task_scores(COUNTING, answers, num_rows=2, num_asked=2)
    assert (scores.num_correct, scores.num_truncated, scores.num_no_box, scores.num_samples) == (1, 2, 2, 2)


def test_avg_at_k_is_the_mean_over_rows_of_their_shares() -> None:
    answers = [*graded(0, True, True, False, False), *graded(1, True, True, True, True), *graded(2, *[False] * 4)]
    scores = task_scores(COUNTING, answers, num_rows=4, num_asked=3, dropped=1)
    values = [0.5, 1.0, 0.0, 0.0]
    assert scores.accuracy == pytest.approx(1.5 / 4)
    assert scores.standard_error == pytest.approx(statistics.stdev(values) / 2)


def test_the_error_of_single_clusters_is_that_of_independent_values() -> None:
    draw = random.Random(0)
    values = [draw.random() for _ in range(50)]
    expected = statistics.stdev(values) / math.sqrt(50)
    assert clustered_standard_error(values, list(range(50))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_clustered_error_is_that_of_a_naive_loop(seed: int) -> None:
    draw = random.Random(seed)
    clusters = [draw.choice("abcdefg") for _ in range(60)]
    values = [draw.random() for _ in clusters]
    assert clustered_standard_error(values, clusters) == pytest.approx(naive_error(values, clusters), rel=1e-12)


def test_the_order_of_rows_does_not_change_the_error() -> None:
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c", "c", "d"]
    shuffled = [5, 2, 0, 4, 1, 3]
    assert clustered_standard_error([values[i] for i in shuffled], [clusters[i] for i in shuffled]) == pytest.approx(
        clustered_standard_error(values, clusters)
    )


def test_variants_that_agree_count_as_one_row() -> None:
    # 4 problems in 5 versions each, all 5 right or all 5 wrong: as good as 4 rows.
    answers = [
        answer
        for problem, right in enumerate([True, True, False, True])
        for version in range(5)
        for answer in graded(5 * problem + version, right, cluster=f"p{problem}")
    ]
    scores = task_scores(MATHVERSE, answers, num_rows=20, num_asked=20)
    assert scores.num_clusters == 4
    assert scores.standard_error == pytest.approx(statistics.stdev([1, 1, 0, 1]) / math.sqrt(4))
    independent = math.sqrt(0.75 * 0.25 / 19)
    effective = 20 * (independent / scores.standard_error) ** 2
    assert (scores.low, scores.high) == pytest.approx(wilson_interval(0.75 * effective, effective))
    assert scores.high - scores.low > 2 * (wilson_interval(15, 20)[1] - 0.75)


def test_one_cluster_has_no_error() -> None:
    assert clustered_standard_error([0.0, 1.0], ["a", "a"]) is None
    assert clustered_standard_error([1.0], ["a"]) is None
    scores = scores_of("counting", 1, 1)
    assert scores.standard_error is None
    assert (scores.low, scores.high) == pytest.approx(wilson_interval(1, 1))


def test_the_interval_is_wilsons_where_rows_are_independent() -> None:
    error = math.sqrt(0.3 * 0.7 / 99)  # of 30 right in 100
    assert accuracy_interval(0.3, error, 100, 1) == pytest.approx(wilson_interval(30, 100))
    assert accuracy_interval(1.0, 0.0, 100, 1) == pytest.approx(wilson_interval(100, 100))
    # Rows that were asked several times are worth more, but never more than all responses.
    assert accuracy_interval(0.3, error / 2, 100, 8) == pytest.approx(wilson_interval(120, 400))
    assert accuracy_interval(0.3, error / 9, 100, 8) == pytest.approx(wilson_interval(240, 800))
    assert accuracy_interval(0.3, error / 9, 100, 1) == pytest.approx(wilson_interval(30, 100))


def test_categories_add_up_to_the_task() -> None:
    answers = [
        *graded(0, True, category="a"), *graded(1, False, category="a"), *graded(2, True, category="b"),
        *graded(3, True),
    ]  # fmt: skip
    scores = task_scores(COUNTING, answers, num_rows=7, num_asked=4, dropped=2, oversized=1)
    assert list(scores.categories) == ["a", UNNAMED, "b", NOT_ASKED]
    assert [part.accuracy for part in scores.categories.values()] == [0.5, 1.0, 1.0, 0.0]
    for name in ("num_scored", "num_asked", "num_dropped", "num_oversized", "num_correct"):
        assert sum(getattr(part, name) for part in scores.categories.values()) == getattr(scores, name)


def test_rows_without_categories_have_none() -> None:
    assert scores_of("counting", 1, 2, num_rows=3, dropped=1).categories == {}


@pytest.mark.parametrize(
    ("answers", "settings", "message"),
    [
        ([], {"num_rows": 5, "num_asked": 0}, "SuperClevr Counting: no row was asked, expected at least one"),
        (graded(0, True), {"num_rows": 5, "num_asked": 2}, "1 rows have answers, but 2 were asked; resume"),
        ([*graded(0, True, True), *graded(3, True)], {"num_rows": 5, "num_asked": 2}, "row 3 has 1 of 2 answers"),
        (graded(0, True), {"num_rows": 2, "num_asked": 1, "dropped": 2}, "1 rows were asked and 2 were not, but the"),
    ],
)
def test_scores_of_half_an_evaluation_are_refused(answers: list, settings: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        task_scores(COUNTING, answers, **settings)


def test_a_task_of_oversized_rows_alone_scores_nothing() -> None:
    scores = task_scores(COUNTING, [], num_rows=3, num_asked=0, oversized=3)
    assert (scores.accuracy, scores.num_samples, scores.num_oversized) == (0.0, 0, 3)


def test_averages_are_plain_means_of_six_four_and_ten() -> None:
    # Accuracies of 10 %, 20 % ... 100 %, whatever the number of rows.
    sizes = [10, 20, 30, 10, 50, 10, 10, 10, 20, 10]
    tasks = [
        scores_of(name, size * tenth // 10, size)
        for tenth, (name, size) in enumerate(zip(SUITES["vgpo"], sizes, strict=True), start=1)
    ]
    found = {average.name: average for average in suite_scores(reversed(tasks)).averages}
    assert {name: average.accuracy for name, average in found.items()} == pytest.approx(
        {"Avg-Math": 0.35, "Avg-Vision": 0.85, "Overall": 0.55}  # (1+...+6)/60, (7+...+10)/40, (1+...+10)/100
    )
    assert [average.num_tasks for average in found.values()] == [6, 4, 10]
    assert not any(average.is_partial for average in found.values())
    errors = [task.standard_error or 0.0 for task in tasks]
    assert found["Overall"].standard_error == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 10)
    assert [task.task for task in suite_scores(reversed(tasks)).tasks] == list(SUITES["vgpo"])


def test_an_average_over_fewer_tasks_or_rows_is_partial() -> None:
    tasks = [scores_of("wemath", 5, 10), scores_of("mmk12", 1, 4, num_rows=2000), scores_of("dynamath", 1, 2)]
    math_average, overall = suite_scores(tasks).averages
    assert (math_average.name, overall.name) == ("Avg-Math", "Overall")  # no vision task, no average
    assert math_average.accuracy == pytest.approx((0.5 + 0.25) / 2)
    assert math_average.missing == ("mathvista", "mathverse", "geomath", "geometry3k")
    assert math_average.partial == ("mmk12",)
    assert math_average.is_partial
    assert overall.num_tasks == 2
    assert len(overall.missing) == 8


def test_a_source_with_other_rows_than_the_paper_is_partial() -> None:
    answers = [answer for row in range(447) for answer in graded(row, row < 200)]
    scores = {
        name: task_scores(BENCHMARKS[name], answers, num_rows=rows, num_asked=447, dropped=rows - 447)
        for name, rows in {"logicvista": 448, "wemath": 447, "geomath": 447}.items()
    }
    assert {name: task.num_expected for name, task in scores.items()} == {
        "logicvista": 448, "wemath": 1740, "geomath": None,
    }  # fmt: skip
    assert {name: task.is_partial for name, task in scores.items()} == {
        "logicvista": False, "wemath": True, "geomath": False,
    }  # fmt: skip
    papo = task_scores(BENCHMARKS["logicvista"], answers, num_rows=447, num_asked=447)
    assert (papo.num_expected, papo.is_partial) == (447, False)
    assert suite_scores(scores.values()).averages[0].partial == ("wemath",)


def test_a_complete_average_of_limited_rows_is_partial() -> None:
    tasks = [scores_of(name, 1, 2, num_rows=3 if name == "counting" else 2) for name in SUITES["vgpo-vision"]]
    (vision, _) = suite_scores(tasks).averages
    assert (vision.missing, vision.partial, vision.is_partial) == ((), ("counting",), True)


def test_further_benchmarks_are_in_no_average() -> None:
    assert suite_scores([scores_of("dynamath", 1, 2)]).averages == []
