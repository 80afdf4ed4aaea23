"""Derive the verdict of a check from its figures, by fixed rules.

1. *Gain.* VGPO has something to gain if the mean correlation of focus and correctness within mixed groups is at least
   `MIN_CORRELATION` and its 95 % interval is above 0; nothing to gain if the interval is below `MIN_CORRELATION`;
   otherwise the check is undecided. With fewer than `MIN_MIXED_GROUPS` mixed groups it says nothing.
2. *State.* The verdict is about the paper's state (`reading`), unless the other one has the better outcome.
3. *Late compensation* has an effect if the late/early ratio of all responses is below `MAX_LATE_EARLY` and
   the interval of the fitted decay lies above 0.
4. *The image is not needed* if the accuracy without it is at least `BLIND_SHARE` of the accuracy with it.
"""

import math

from vgpo.focus_check.records import (
    STATES,
    Figure,
    Finding,
    Gain,
    Measures,
    StateFigures,
    Verdict,
)

MIN_CORRELATION = 0.1
MIN_MIXED_GROUPS = 8
MAX_LATE_EARLY = 0.9
BLIND_SHARE = 0.9
MAX_QUESTIONS = 10_000  # largest number of questions to recommend

HEADLINES: dict[Gain, str] = {
    "gain": "VGPO has something to gain",
    "none": "VGPO has nothing to gain",
    "undecided": "Undecided, more questions are needed",
    "too few": "Undecided, too few groups have mixed accuracy",
}
# What a gain is worth, by docs/results.md.
EVIDENCE = (
    "This is the premise of VGPO, not a forecast: of the four toy starts that were trained after this verdict, "
    "reweighting was better than DAPO on one. Compare it with shaping: none over several seeds."
)
# The better the outcome, the earlier.
RANKS: tuple[Gain, ...] = ("gain", "undecided", "none", "too few")


def verdict_of(measures: Measures) -> Verdict:
    """Apply the rules of this module."""
    mixed = measures.counts.mixed_groups
    gains = {state: gain_of(measures.states[state].correlation, mixed) for state in STATES}
    state = min(STATES, key=lambda name: RANKS.index(gains[name]))  # for equal outcomes, the paper's
    gain, figures = gains[state], measures.states[state]
    compensation = compensation_finding(figures)
    blind = blind_finding(measures)
    return Verdict(
        gain=gain,
        focus_state=state,
        headline=HEADLINES[gain],
        reasons=reasons_of(gain, state, measures),
        compensation=compensation,
        blind=blind,
        questions_needed=questions_needed(gain, figures.correlation, mixed, measures.counts.questions),
        recipe=recipe_lines(gain, state, figures, compensation, blind),
        advice=advice_of(gain, figures, blind),
    )


def gain_of(correlation: Figure, mixed_groups: int) -> Gain:
    """Apply rule 1."""
    value, low, high = correlation.value, correlation.low, correlation.high
    if mixed_groups < MIN_MIXED_GROUPS or value is None or low is None or high is None:
        return "too few"
    if high < MIN_CORRELATION:
        return "none"
    return "gain" if low > 0 and value >= MIN_CORRELATION else "undecided"


def questions_needed(gain: Gain, correlation: Figure, mixed_groups: int, questions: int) -> int | None:
    """Number of questions needed for a decision if the mean stays the same: the interval narrows with their square
    root.

    None if the check is decided, if there is no mixed group, or for more than `MAX_QUESTIONS`.
    """
    if gain == "too few":
        return enough_mixed(questions, mixed_groups)
    if gain != "undecided" or correlation.value is None or correlation.low is None or correlation.high is None:
        return None
    value = correlation.value
    if value >= MIN_CORRELATION:
        wide, room = value - correlation.low, value
    else:
        wide, room = correlation.high - value, MIN_CORRELATION - value
    needed = questions * (wide / room) ** 2
    return math.ceil(needed) + 1 if needed < MAX_QUESTIONS else None


def enough_mixed(questions: int, mixed_groups: int) -> int | None:
    """Questions needed for `MIN_MIXED_GROUPS` at the measured share; None if there is no mixed group."""
    return math.ceil(MIN_MIXED_GROUPS * questions / mixed_groups) if mixed_groups else None


def reasons_of(gain: Gain, state: str, measures: Measures) -> list[str]:
    """Reasons for the outcome of rule 1, and possible causes."""
    counts, correlation = measures.counts, measures.states[state].correlation
    if gain == "too few":
        return [
            f"Only {counts.mixed_groups} of {counts.questions} groups have correct and wrong answers, at least "
            f"{MIN_MIXED_GROUPS} are needed. {few_reason(measures)}"
        ]
    found = (
        f"Within groups, the focus of a response ({state} state) correlates with its correctness at "
        f"{with_interval(correlation)}, over {correlation.count} mixed groups of {counts.questions}."
    )
    why = {
        "gain": f"The interval is above 0 and the mean is at least {MIN_CORRELATION}: correct answers look at the "
        "image more than wrong ones to the same question.",
        "none": f"The interval is below {MIN_CORRELATION}: weights that follow the focus would not follow "
        "correctness.",
        "undecided": f"The interval holds values that mean a gain and values that mean none; the limit is "
        f"{MIN_CORRELATION}.",
    }
    needed = questions_needed(gain, correlation, counts.mixed_groups, counts.questions)
    more = {
        "undecided": f"If the mean stays, {needed:,} questions (--limit {needed}) decide."
        if needed is not None
        else f"More than {MAX_QUESTIONS:,} questions would be needed: the mean is too close to the limit."
    }
    outcome = " ".join(filter(None, (why[gain], more.get(gain))))
    return [found, outcome, length_reason(measures.states[state], measures.length_correlation)]


def few_reason(measures: Measures) -> str:
    """Why groups are not mixed, and how to fix it."""
    counts, accuracy = measures.counts, measures.accuracy.value or 0.0
    needed = enough_mixed(counts.questions, counts.mixed_groups)
    more = f"At this share, {needed:,} questions have {MIN_MIXED_GROUPS}." if needed is not None else ""
    if accuracy > 0.5:
        why = f"The accuracy is {percent(accuracy)}: the questions are too easy, or --samples is too small."
    else:
        why = (
            f"The accuracy is {percent(accuracy)}: the questions are too hard, --samples or --max-new-tokens is too "
            "small, or the template does not fit the answers."
        )
    return " ".join(filter(None, (why, more)))


def length_reason(figures: StateFigures, length: Figure) -> str:
    """The correlation that remains at equal length."""
    left = figures.correlation_at_equal_length
    correlation = figures.correlation.low
    explained = correlation is not None and left.low is not None and left.low <= 0 < correlation
    return (
        f"At equal length of the response the correlation is {with_interval(left)}; the length itself correlates with "
        f"correctness at {with_interval(length)}."
        + (" The length alone may explain the correlation." if explained else "")
    )


def compensation_finding(figures: StateFigures) -> Finding:
    """Rule 3."""
    ratio, decay = figures.late_early.all.value, figures.decay
    if ratio is None or decay.low is None:
        return Finding(holds=None, text="The responses are too few or too short to tell whether the focus decays.")
    holds = ratio < MAX_LATE_EARLY and decay.low > 0
    found = f"the late/early ratio is {number(ratio)} and the fitted decay {with_interval(decay)}"
    if holds:
        return Finding(holds=True, text=f"Late compensation has something to act on: {found}.")
    return Finding(
        holds=False,
        text=f"Late compensation has little to act on: {found}, expected a ratio below {MAX_LATE_EARLY} and a decay "
        "above 0.",
    )


def blind_finding(measures: Measures) -> Finding:
    """Rule 4."""
    with_image, blind = measures.accuracy.value, measures.blind.accuracy.value
    if not with_image or blind is None:
        return Finding(holds=None, text="No answer is correct, so the accuracy without the image is not informative.")
    found = f"accuracy without it is {percent(blind)}, with it {percent(with_image)}"
    if blind >= BLIND_SHARE * with_image:
        return Finding(holds=True, text=f"The image is not needed: {found}.")
    return Finding(holds=False, text=f"The image is needed: {found}.")


def recipe_lines(gain: Gain, state: str, figures: StateFigures, compensation: Finding, blind: Finding) -> list[str]:
    """Recipe lines for the verdict; none if there are too few groups."""
    if gain == "too few":
        return []
    if gain == "none":
        return ["shaping: none"]
    if gain == "undecided" or blind.holds or figures.strength.value != 1:
        options = ["shaping_options:", "  blind_gate: true"] if blind.holds else []
        return ["shaping: adaptive", f"focus_state: {state}", *options]
    # The correlation is computed with the mean focus.
    lines = ["shaping: vgpo", f"focus_state: {state}", "rollout_score: mean"]
    return lines if compensation.holds else [*lines, "strength: 0"]


def advice_of(gain: Gain, figures: StateFigures, blind: Finding) -> str:
    """The reason for these lines."""
    if gain == "too few":
        return "No shaping is recommended: change the questions or the sampling first, and check again."
    if gain == "none":
        return "Train without reweighting: VGPO would only add noise."
    chosen = shaping_reason(gain, figures, blind)
    return f"{chosen} {EVIDENCE}" if gain == "gain" else chosen


def shaping_reason(gain: Gain, figures: StateFigures, blind: Finding) -> str:
    strength = f"its strength would start near {with_interval(figures.strength)}"
    if blind.holds:
        return f"The adaptive shaping with the blind gate: {strength}, and less where the image is not needed."
    if gain == "undecided":
        return f"The adaptive shaping, which reweights only as far as the correlation is there: {strength}."
    if figures.strength.value != 1:
        return f"The adaptive shaping: {strength}, less than the fixed strength 1 of VGPO."
    return "VGPO at full strength: at this correlation the adaptive shaping has strength 1."


# Numbers in sentences


def number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus in front of 0.00


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def with_interval(figure: Figure) -> str:
    """0.12 [0.03, 0.20]; a dash for a missing figure."""
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"
