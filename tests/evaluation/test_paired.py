"""Two checkpoints on the same rows, against naive loops, literals and known cases."""

import itertools
import math
import random
import re
import tracemalloc
import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from tests.suite.evaluations import graded
from vgpo.evaluation.answers import GradedAnswer
from vgpo.evaluation.paired import (
    ComparisonError,
    PairedRows,
    check_protocols,
    compare_average,
    compare_task,
    mcnemar_p_value,
    pair_rows,
)
from vgpo.resampling import NUM_RESAMPLES, percentile_interval, resamples


def verdicts(text: str, sample: int = 0, first_row: int = 0) -> list[GradedAnswer]:
    """An answer for each character: `+` is right; rows are numbered from `first_row`."""
    return [graded(row, correct=sign == "+", sample=sample) for row, sign in enumerate(text, start=first_row)]


def paired(first: str, second: str, task: str = "mathvista") -> PairedRows:
    return pair_rows(task, verdicts(first), verdicts(second))


def naive_p_value(won: int, lost: int) -> float:
    """By trying all ways in which the discordant rows could have fallen."""
    observed = min(won, lost)
    outcomes = list(itertools.product((0, 1), repeat=won + lost))
    return sum(min(sum(one), len(one) - sum(one)) <= observed for one in outcomes) / len(outcomes)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (3, 0), (5, 1), (4, 4), (2, 7), (10, 2), (6, 5)])
def test_mcnemar_is_the_share_of_outcomes_that_are_as_extreme(won: int, lost: int) -> None:
    assert mcnemar_p_value(won, lost) == pytest.approx(naive_p_value(won, lost), abs=1e-15)
    assert mcnemar_p_value(won, lost) == mcnemar_p_value(lost, won)


def test_known_values_of_mcnemar() -> None:
    assert mcnemar_p_value(10, 2) == 2 * (1 + 12 + 66) / 4096  # C(12, 0) + C(12, 1) + C(12, 2) of 2^12
    assert mcnemar_p_value(15, 5) == pytest.approx(0.041389465, abs=1e-9)  # 2 * 21,700 / 2^20
    assert mcnemar_p_value(7, 7) == 1.0
    # The normal distribution with a correction for continuity: z = (1100 - 900 - 1) / sqrt(2000).
    z = (1100 - 900 - 1) / math.sqrt(2000)
    assert mcnemar_p_value(1100, 900) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.03)


def test_counts_and_means_of_a_task() -> None:
    found = compare_task(paired("++++--", "+++--+"))
    assert (found.won, found.lost, found.both, found.neither) == (1, 1, 3, 1)
    assert (found.first, found.second, found.difference) == (4 / 6, 4 / 6, 0.0)
    assert (found.num_rows, found.num_clusters, found.p_value) == (6, 6, 1.0)
    better = compare_task(paired("+---", "++++"))
    assert (better.won, better.lost, better.both, better.neither) == (3, 0, 1, 0)
    assert better.difference == 0.75
    assert better.p_value == 0.25  # 2 / 2^3


def test_answers_are_joined_by_row_in_any_order() -> None:
    first, second = verdicts("+-+-+" * 9), verdicts("++--+" * 9)
    expected = pair_rows("t", first, second).resampled
    draw = random.Random(0)
    draw.shuffle(first)
    draw.shuffle(second)
    assert np.array_equal(pair_rows("t", first, second).resampled, expected)


def test_rows_that_neither_was_asked_count_as_wrong_for_both() -> None:
    rows = pair_rows("t", verdicts("+--"), verdicts("++-"), num_dropped=2)
    found = compare_task(rows)
    assert (found.first, found.second, found.num_rows, found.neither) == (1 / 5, 2 / 5, 5, 3)
    assert rows.clusters.tolist() == [0, 1, 2, 3, 4]


def test_several_answers_to_a_row_are_compared_by_their_mean_without_mcnemar() -> None:
    first = [*verdicts("+-+"), *verdicts("+--", sample=1)]  # 1, 0, 1/2
    second = [*verdicts("+-+"), *verdicts("--+", sample=1)]  # 1/2, 0, 1
    found = compare_task(pair_rows("t", first, second))
    assert (found.first, found.second, found.p_value) == (0.5, 0.5, None)
    assert (found.won, found.lost, found.both, found.neither) == (1, 1, 0, 1)


def naive_resampled(first: Sequence[float], second: Sequence[float], clusters: Sequence[int], stream: int) -> list:
    """Row by row; the draws alone are shared."""
    differences = []
    for places in itertools.chain.from_iterable(resamples(max(clusters) + 1, stream)):
        drawn = [row for place in places for row in range(len(first)) if clusters[row] == place]
        differences.append(math.fsum(second[row] - first[row] for row in drawn) / len(drawn))
    return differences


def test_the_bootstrap_draws_whole_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpo.resampling.NUM_RESAMPLES", 300)
    signs, clusters = ("+-++--+", "++-+-++"), [None, "a", "b", "a", None, "b", "b"]
    first, second = (
        [graded(row, correct=sign == "+", cluster=clusters[row]) for row, sign in enumerate(text)] for text in signs
    )
    rows = pair_rows("mathverse", first, second)
    assert rows.clusters.tolist() == [0, 1, 2, 1, 3, 2, 2]
    naive = naive_resampled(rows.first, rows.second, rows.clusters, zlib.crc32(b"mathverse"))
    assert rows.resampled == pytest.approx(np.array(naive), abs=1e-12)
    low, high = compare_task(rows).low, compare_task(rows).high
    naive.sort()
    assert low == pytest.approx(np.quantile(naive, 0.025))
    assert high == pytest.approx(np.quantile(naive, 0.975))


def test_a_cluster_of_copies_says_as_much_as_one_row() -> None:
    first, second = "+-++--+-" * 5, "++-+-++-" * 5
    once = compare_task(paired(first, second))

    def copies(text: str) -> list[GradedAnswer]:
        return [
            graded(4 * row + copy, correct=sign == "+", cluster=str(row))
            for row, sign in enumerate(text)
            for copy in range(4)
        ]

    four_times = compare_task(pair_rows("mathvista", copies(first), copies(second)))
    assert (four_times.low, four_times.high) == (once.low, once.high)
    assert (four_times.num_rows, four_times.num_clusters) == (160, 40)
    independent = compare_task(paired(first * 4, second * 4))
    assert independent.high - independent.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_the_interval_of_many_rows_is_the_normal_one() -> None:
    draw = random.Random(1)
    first = "".join(draw.choice("+-") for _ in range(1000))
    second = "".join(sign if draw.random() < 0.6 else draw.choice("++-") for sign in first)
    rows = paired(first, second)
    found = compare_task(rows)
    margin = 1.959964 * (rows.second - rows.first).std() / math.sqrt(1000)
    assert found.low == pytest.approx(found.difference - margin, abs=0.05 * margin)
    assert found.high == pytest.approx(found.difference + margin, abs=0.05 * margin)


def test_equal_checkpoints_differ_by_nothing() -> None:
    found = compare_task(paired("+-+", "+-+"))
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_the_same_draws_are_made_every_time() -> None:
    assert np.array_equal(paired("+-+-", "++--").resampled, paired("+-+-", "++--").resampled)
    assert len(paired("+-+-", "++--").resampled) == NUM_RESAMPLES


def test_the_bootstrap_of_five_thousand_rows_needs_little_memory() -> None:
    rows = paired("+-" * 2500, "++" * 2500)
    tracemalloc.start()
    assert len(rows.resampled) == NUM_RESAMPLES
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all draws at once are 400 MB


def test_an_average_is_the_plain_mean_over_independent_tasks() -> None:
    rows = {name: paired(first, second, name) for name, first, second in [("a", "+---", "++--"), ("b", "++", "+-")]}
    found = compare_average("Math", ("a", "b"), rows)
    assert found is not None
    assert (found.first, found.second, found.difference) == (0.625, 0.5, -0.125)
    drawn = [(rows["a"].resampled[i] + rows["b"].resampled[i]) / 2 for i in range(NUM_RESAMPLES)]
    assert (found.low, found.high) == pytest.approx(percentile_interval(np.array(drawn)))
    assert (found.name, found.tasks) == ("Math", ("a", "b"))


def test_tasks_are_drawn_independently() -> None:
    one, other = (paired("+-+-" * 50, "++--" * 50, name).resampled for name in ("mathvista", "mathverse"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_an_average_names_the_tasks_that_it_is_over() -> None:
    rows = {"a": paired("+-", "++", "a")}
    found = compare_average("Math", ("a", "b"), rows)
    assert found is not None
    assert (found.tasks, found.difference) == (("a",), 0.5)
    assert compare_average("Vision", ("c",), rows) is None


def test_other_questions_are_refused_and_named() -> None:
    first, second = verdicts("+" * 12), verdicts("+" * 9, first_row=3)
    second[0] = graded(3, correct=True, answer="4")
    with pytest.raises(ComparisonError) as caught:
        pair_rows("mathvista", first[:-1], second)
    assert str(caught.value) == (
        "mathvista: the evaluations asked different questions: rows 0 ('q0'), 1 ('q1'), 2 ('q2') only in the first; "
        "row 11 ('q11') only in the second; row 3 ('q3') with another question or reference answer. Evaluate both on "
        "the same data with the same --limit"
    )


def test_no_more_than_five_rows_are_named() -> None:
    with pytest.raises(ComparisonError, match=re.escape("4 ('q4') and 2 more only in the first")):
        pair_rows("t", verdicts("+" * 8), verdicts("+", first_row=7))


def test_a_row_of_another_id_is_another_question() -> None:
    with pytest.raises(ComparisonError, match=r"row 0 \('q0'\) only in the first; row 0 \('other'\) only in the sec"):
        pair_rows("t", verdicts("+"), [graded(0, correct=True, id="other")])


def test_unequal_numbers_of_answers_are_refused() -> None:
    with pytest.raises(ComparisonError, match="found rows with 1 and 2 answers, expected the same number"):
        pair_rows("t", verdicts("++"), [*verdicts("++"), *verdicts("+", sample=1)])
    with pytest.raises(ComparisonError, match="t: no row was answered in both evaluations"):
        pair_rows("t", [], [])


def test_other_protocols_are_refused() -> None:
    check_protocols("papo-greedy", "papo-greedy")
    with pytest.raises(ComparisonError, match="the first 'papo-greedy', the second 'lenient'; evaluate both"):
        check_protocols("papo-greedy", "lenient")
