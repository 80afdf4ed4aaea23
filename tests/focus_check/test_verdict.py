"""The rules of the verdict."""

import pytest

from tests.focus_check.made import gaining, samples
from vgpo.focus_check.measure import measure
from vgpo.focus_check.records import Figure, Measures
from vgpo.focus_check.verdict import (
    EVIDENCE,
    blind_finding,
    compensation_finding,
    gain_of,
    number,
    questions_needed,
    verdict_of,
)
from vgpo.trl import VGPOConfig


def figure(value: float | None, low: float | None = None, high: float | None = None, count: int = 64) -> Figure:
    return Figure(value=value, low=low, high=high, count=count)


@pytest.mark.parametrize(
    ("correlation", "mixed", "gain"),
    [
        (figure(0.2, 0.01, 0.3), 8, "gain"),
        (figure(0.2, 0.01, 0.3), 7, "too few"),
        (figure(0.1, 0.05, 0.15), 40, "gain"),
        (figure(0.2, 0.0, 0.3), 40, "undecided"),
        (figure(0.09, 0.05, 0.15), 40, "undecided"),
        (figure(0.03, -0.05, 0.099), 40, "none"),
        (figure(-0.3, -0.4, -0.2), 40, "none"),
        (figure(0.03, -0.05, 0.1), 40, "undecided"),
        (figure(None), 40, "too few"),
    ],
)
def test_gain(correlation: Figure, mixed: int, gain: str) -> None:
    assert gain_of(correlation, mixed) == gain


def test_questions_that_decide() -> None:
    # The half of the interval below 0.2 is twice as wide as it may be: four times the questions, and one.
    assert questions_needed("undecided", figure(0.2, -0.2, 0.6), 20, 64) == 257
    # Above 0.05 it may be 0.05 wide and is 0.1.
    assert questions_needed("undecided", figure(0.05, -0.1, 0.15), 20, 64) == 257
    assert questions_needed("undecided", figure(0.0999, 0.0, 0.2), 20, 64) is None
    assert questions_needed("gain", figure(0.2, 0.1, 0.3), 20, 64) is None
    assert questions_needed("too few", figure(0.2, 0.1, 0.3), 3, 64) == 171  # 8 / 3 * 64 = 170.7
    assert questions_needed("too few", figure(None), 0, 64) is None


def changed(measures: Measures, **states: dict[str, object]) -> Measures:
    """With other figures in the states that are named."""
    found = {name: figures.model_copy(update=states.get(name, {})) for name, figures in measures.states.items()}
    return measures.model_copy(update={"states": found})


@pytest.fixture(scope="module")
def measures() -> Measures:
    return measure(gaining(12))


def test_a_gain_names_its_numbers_and_recipe(measures: Measures) -> None:
    found = verdict_of(measures)
    assert (found.gain, found.focus_state, found.headline) == ("gain", "reading", "VGPO has something to gain")
    assert "1.00 [1.00, 1.00], over 12 mixed groups of 12" in found.reasons[0]
    assert found.advice.endswith(EVIDENCE)
    assert found.recipe[:2] == ["shaping: vgpo", "focus_state: reading"]


def test_a_weak_gain_gets_a_measured_strength(measures: Measures) -> None:
    weak = {"correlation": figure(0.12, 0.05, 0.2, 12), "strength": figure(0.6, 0.25, 1.0, 12)}
    found = verdict_of(changed(measures, reading=weak))
    assert found.recipe == ["shaping: adaptive", "focus_state: reading"]
    assert "0.60 [0.25, 1.00]" in found.advice


def test_the_papers_state_goes_first(measures: Measures) -> None:
    both = {"correlation": figure(0.3, 0.2, 0.4, 12)}
    assert verdict_of(changed(measures, reading=both, predicting=both)).focus_state == "reading"
    nothing = {"correlation": figure(0.0, -0.05, 0.05, 12)}
    found = verdict_of(changed(measures, reading=nothing, predicting=both))
    assert (found.gain, found.focus_state) == ("gain", "predicting")
    assert "focus_state: predicting" in found.recipe


def test_nothing_to_gain(measures: Measures) -> None:
    nothing = {"correlation": figure(0.0, -0.05, 0.05, 12)}
    found = verdict_of(changed(measures, reading=nothing, predicting=nothing))
    assert (found.gain, found.recipe) == ("none", ["shaping: none"])


def test_undecided_asks_for_questions(measures: Measures) -> None:
    open_ = {"correlation": figure(0.2, -0.2, 0.6, 12)}
    found = verdict_of(changed(measures, reading=open_, predicting=open_))
    assert (found.gain, found.questions_needed) == ("undecided", 49)
    assert "49 questions (--limit 49)" in found.reasons[1]
    assert found.recipe[0] == "shaping: adaptive"


@pytest.mark.parametrize(("correct", "word"), [(True, "too easy"), (False, "too hard")])
def test_groups_that_are_not_mixed(correct: bool, word: str) -> None:
    found = verdict_of(measure(samples([[(correct, [0.5, 0.4]), (correct, [0.2, 0.3])]] * 9)))
    assert (found.gain, found.recipe, len(found.reasons)) == ("too few", [], 1)
    assert "Only 0 of 9 groups" in found.reasons[0]
    assert word in found.reasons[0]


def test_late_compensation(measures: Measures) -> None:
    def finding(ratio: float | None, decay: Figure) -> bool | None:
        reading = measures.states["reading"]
        late_early = reading.late_early.model_copy(update={"all": figure(ratio)})
        return compensation_finding(reading.model_copy(update={"late_early": late_early, "decay": decay})).holds

    assert finding(0.89, figure(0.3, 0.01, 0.5)) is True
    assert finding(0.9, figure(0.3, 0.01, 0.5)) is False
    assert finding(0.89, figure(0.3, 0.0, 0.5)) is False
    assert finding(None, figure(0.3, 0.01, 0.5)) is None
    assert finding(0.5, figure(0.3)) is None


def test_a_recipe_without_decay_has_no_compensation(measures: Measures) -> None:
    reading = measures.states["reading"]
    flat = reading.late_early.model_copy(update={"all": figure(1.0, 0.9, 1.1)})
    lines = verdict_of(changed(measures, reading={"late_early": flat})).recipe
    assert lines[-1] == "strength: 0"


def test_questions_that_are_answered_blind(measures: Measures) -> None:
    def blind(accuracy: float, with_image: float) -> Measures:
        part = measures.blind.model_copy(update={"accuracy": figure(accuracy)})
        return measures.model_copy(update={"blind": part, "accuracy": figure(with_image)})

    assert blind_finding(blind(0.45, 0.5)).holds is True
    assert blind_finding(blind(0.44, 0.5)).holds is False
    assert blind_finding(blind(0.0, 0.0)).holds is None
    assert "  blind_gate: true" in verdict_of(blind(0.5, 0.5)).recipe


def test_length_that_explains_is_named(measures: Measures) -> None:
    left = {"correlation_at_equal_length": figure(0.05, -0.1, 0.2, 12)}
    assert "The length alone may explain" in verdict_of(changed(measures, reading=left)).reasons[-1]
    left = {"correlation_at_equal_length": figure(0.15, 0.1, 0.2, 12)}
    assert "may explain" not in verdict_of(changed(measures, reading=left)).reasons[-1]
    nothing = {"correlation": figure(0.0, -0.1, 0.1, 12), "correlation_at_equal_length": figure(0.0, -0.1, 0.1, 12)}
    assert "may explain" not in " ".join(verdict_of(changed(measures, reading=nothing)).reasons)


@pytest.mark.parametrize(("value", "text"), [(-0.004, "0.00"), (0.004, "0.00"), (-0.006, "−0.01"), (1.0, "1.00")])
def test_a_rounded_zero_has_no_sign(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("low", [-0.1, 0.05])
def test_a_recipe_is_one_that_a_run_accepts(measures: Measures, low: float, strength: float, blind: bool) -> None:
    import yaml

    state = {"correlation": figure(0.15, low, 0.3, 12), "strength": figure(strength, 0.0, 1.0, 12)}
    part = measures.blind.model_copy(update={"accuracy": figure(1.0 if blind else 0.0)})
    found = changed(measures, reading=state, predicting=state).model_copy(update={"blind": part})
    fields = yaml.safe_load("\n".join(verdict_of(found).recipe))
    VGPOConfig(output_dir="unused", use_cpu=True, bf16=False, **fields).build_shaping()
