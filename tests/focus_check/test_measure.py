"""Figures of a check, against values by hand."""

from math import sqrt

import numpy as np
import pytest

from tests.focus_check.made import gaining, samples
from vgpo.focus_check.measure import measure, median_of, partial_correlation, ratio_of, strength_of
from vgpo.focus_check.records import Figure

TWO = [
    [(True, [0.2, 0.6]), (False, [0.4, 0.0])],  # rho 0.6 0.8 and 0.7 0.5
    [(True, [0.0, 0.0, 0.0]), (True, [0.2])],  # rho 0.5 and 0.6
]


def test_answers_by_hand() -> None:
    found = measure(samples(TWO))
    assert found.counts.model_dump() == {
        "questions": 2, "without_image": 0, "responses": 4, "truncated": 0, "mixed_groups": 1
    }  # fmt: skip
    assert found.accuracy.value == 0.75
    assert found.mixed.value == 0.5
    assert (found.length.all.value, found.length.right.value, found.length.wrong.value) == (2, 2, 2)
    assert found.length_correlation.model_dump() == {"value": 0, "low": None, "high": None, "count": 1}


def test_focus_by_hand() -> None:
    found = measure(samples(TWO)).states["reading"]
    assert found.focus.right.value == pytest.approx((0.7 + 0.5 + 0.6) / 3)
    assert found.focus.wrong.value == pytest.approx(0.6)
    # A response of one token has no halves; of three tokens the last two are the late ones.
    assert found.late_early.right.value == pytest.approx((0.8 / 0.6 + 1) / 2)
    assert found.late_early.wrong.value == pytest.approx(0.5 / 0.7)
    assert found.late_early_difference.value == pytest.approx(0.8 / 0.6 - 0.5 / 0.7)
    assert found.focus_difference.value == pytest.approx(0.1)
    assert found.correlation.value == pytest.approx(1)
    # Token i of T is in tenth 10 i // T.
    assert found.wrong_by_decile[0].value == pytest.approx(0.7)
    assert found.wrong_by_decile[5].value == pytest.approx(0.5)
    assert found.wrong_by_decile[1].value is None
    assert found.right_by_decile[0].value == pytest.approx((0.6 + 0.5 + 0.6) / 3)


def test_the_other_state_has_its_own_figures() -> None:
    found = measure(samples(TWO)).states["predicting"]  # the cosines are those of the other one with the other sign
    assert found.focus.wrong.value == pytest.approx((0.3 + 0.5) / 2)
    assert found.correlation.value == pytest.approx(-1)


def test_a_planted_decay_is_found() -> None:
    falling = [0.5 - 0.03 * token for token in range(10)]
    found = measure(samples([[(True, falling), (False, falling)]] * 3)).states["reading"]
    # Over the smallest S, e(b) = 0.03 (9 - b) = 0.285 (1 - u / 0.95) at u = (b + 0.5) / 10.
    assert found.decay.value == pytest.approx(1 / 0.95)
    assert found.compensation.mean.value == 1  # f / 0.55 is above 1
    assert (found.compensation.at_zero, found.compensation.at_full) == (0, 1)
    rising = measure(samples([[(True, falling[::-1]), (False, falling[::-1])]] * 3)).states["reading"]
    # Its line starts below 0: as in a training, it has no decay and no compensation.
    assert (rising.decay.value, rising.compensation.at_zero) == (0, 1)


def test_compensation_is_divided_by_group() -> None:
    falling = [0.5 - 0.03 * token for token in range(10)]
    flat = [0.5] * 10
    groups = [[(True, falling), (False, falling)], [(True, flat), (False, [*flat[:-1], 0.0])]]
    found = measure(samples(groups)).states["reading"].compensation
    # e is 0.5 in nine bins and 0.25 in the last, 0.45 from the middle: mean 0.475, slope 0.45 * -0.25 / 0.825.
    slope = (0.45 * -0.25) / 0.825
    share = -slope / (0.475 - 0.5 * slope) / 0.55
    assert found.quartiles == pytest.approx([share + part * (1 - share) for part in (0.25, 0.5, 0.75)], rel=1e-5)
    assert (found.at_zero, found.at_full) == (0, 0.5)


def test_responses_of_one_token_have_no_decay() -> None:
    found = measure(samples([[(True, [0.5]), (False, [0.2])]] * 2)).states["reading"]
    assert (found.decay.value, found.late_early.all.value) == (0, None)
    assert found.compensation.quartiles == [0, 0, 0]


def test_a_mean_over_responses_weighs_questions_by_their_responses() -> None:
    found = ratio_of(np.array([3.0, 0.0, 7.0]), np.array([1.0, 0.0, 4.0]))
    assert (found.value, found.count) == (2.0, 2)
    # The resampled ratios are 3 / 1, 7 / 4 and 10 / 5.
    assert (found.low, found.high) == (1.75, 3.0)


def test_what_does_not_exist_does_not_count() -> None:
    assert median_of(np.array([np.nan, 5.0, 1.0, 2.0])).value == 2
    assert median_of(np.array([np.nan])).model_dump() == {"value": None, "low": None, "high": None, "count": 0}


def test_an_interval_is_over_questions() -> None:
    found = measure(gaining(12)).states["reading"]
    assert found.correlation.count == 12
    assert found.focus_difference.low < found.focus_difference.value < found.focus_difference.high


def test_length_is_held_fixed() -> None:
    # (0.5 - 0.3 * 0.4) / sqrt((1 - 0.09) (1 - 0.16))
    found = partial_correlation(np.array([[0.5, 0.3, 0.4], [0.6, 1.0, 0.6]]))
    assert found == pytest.approx([0.38 / sqrt(0.91 * 0.84), 0])


def test_focus_that_is_length_has_no_correlation_of_its_own() -> None:
    groups = [[(True, [0.5, 0.5, 0.5]), (False, [0.3]), (True, [0.4, 0.4]), (False, [0.4, 0.4])]] * 4
    found = measure(samples(groups)).states["reading"]
    # Lengths 3 1 2 2, focus in step with them, two right: both correlate at 1 / sqrt(2).
    assert found.correlation.value == pytest.approx(1 / sqrt(2), abs=1e-6)
    assert found.correlation_at_equal_length.value == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("correlation", "strength"), [(-0.3, 0), (0.05, 0.25), (0.2, 1), (0.7, 1)])
def test_strength_is_a_share_of_the_full_correlation(correlation: float, strength: float) -> None:
    found = strength_of(Figure(value=correlation, low=None, high=None, count=3))
    assert found.value == pytest.approx(strength)
    assert found.low is None


def test_blind_answers_by_hand() -> None:
    groups = samples([[(True, [0.5, 0.5]), (False, [0.2, 0.2])]] * 4)
    groups.blind_correct[0] = True
    groups.blind_correct[1, 0] = True
    groups.chance[:2] = 0.25
    found = measure(groups).blind
    assert found.accuracy.value == 3 / 8
    assert found.always_right.value == 1 / 4
    assert found.chance.value == 1 / 8
    # (0, 0.5 / 0.75, 1, 1) / 4
    assert found.strength.value == pytest.approx((0 + 2 / 3 + 2) / 4)
    assert found.multiple_choice == 2


def test_strata_have_figures_of_their_own() -> None:
    groups = [*TWO, [(True, [0.0, 0.0]), (False, [0.6, 0.6])]]
    found = measure(samples(groups, strata=("b", "a", "b"))).strata["reading"]
    assert [(one.name, one.questions, one.mixed_groups) for one in found] == [("a", 1, 0), ("b", 2, 2)]
    assert found[0].correlation.value is None
    assert found[1].correlation.value == pytest.approx(0)
    assert (found[0].accuracy.value, found[1].accuracy.value) == (1, 0.5)


def test_each_question_is_listed() -> None:
    found = measure(samples(TWO)).questions
    assert [(one.row, one.responses, one.correct) for one in found] == [(10, 2, 1), (11, 2, 2)]
    assert found[0].focus_difference["reading"] == pytest.approx(0.1)
    assert found[1].correlation == {"reading": None, "predicting": None}
