"""What a focus check finds, version 1: a record per JSON object of its file (docs/focus_check.md)."""

from typing import Annotated, Literal

from pydantic import Field

from vgpo.records import Record

VERSION = 1
STATES = READING, PREDICTING = "reading", "predicting"  # of `vgpo.equations.FocusState`, the paper's first

Gain = Literal["gain", "none", "undecided", "too few"]


class FocusCheckError(ValueError):
    """A check that cannot be made; the message says what was found, what was expected and what to do."""


class Figure(Record):
    """A figure with its 95 % bootstrap interval over questions."""

    value: float | None
    """None if no question has it."""
    low: float | None
    high: float | None
    """None where fewer than two questions have the figure."""
    count: int
    """Questions that have the figure."""


class Outcomes(Record):
    """A figure over all responses, over right ones and over wrong ones."""

    all: Figure
    right: Figure
    wrong: Figure


class Compensation(Record):
    """The share of beta by which the adaptive shaping would compensate late tokens, over groups; each in [0, 1]."""

    mean: Figure
    at_zero: float
    """Share of groups without compensation."""
    at_full: float
    """Share of groups with the full beta."""
    quartiles: Annotated[list[float], Field(min_length=3, max_length=3)]
    """25 %, 50 % and 75 %."""


class StateFigures(Record):
    """What one hidden state of each token says: the one after reading it, or the one that predicts it."""

    focus: Outcomes
    """Mean rho of a response."""
    late_early: Outcomes
    """Mean rho of the last half of a response over that of its first half."""
    late_early_difference: Figure
    """Late/early ratio of right answers less that of wrong ones to the same question."""
    focus_difference: Figure
    """Mean rho of right answers less that of wrong ones to the same question."""
    correlation: Figure
    """Of mean rho with correctness within mixed groups, in [-1, 1]."""
    correlation_at_equal_length: Figure
    """The same with the length of the response held fixed (a partial correlation)."""
    decay: Figure
    """Median over groups of f, the share of the focus that is lost along a response by a fitted line; 0 for a group
    without such a line."""
    strength: Figure
    """Lambda of the adaptive shaping that the correlation leads to, in [0, 1]."""
    compensation: Compensation
    right_by_decile: Annotated[list[Figure], Field(min_length=10, max_length=10)]
    wrong_by_decile: Annotated[list[Figure], Field(min_length=10, max_length=10)]


class Counts(Record):
    """How much the check has seen."""

    questions: int
    without_image: int
    """Rows of the data set that were left out for having no image."""
    responses: int
    truncated: int
    """Responses that reached the limit of tokens."""
    mixed_groups: int
    """Questions with right and wrong answers."""


class BlindFigures(Record):
    """Answers to the questions without their images."""

    accuracy: Figure
    always_right: Figure
    """Share of questions to which every answer is right."""
    chance: Figure
    """Expected accuracy of guessing, 0 for a question without options."""
    strength: Figure
    """Lambda of the blind gate, in [0, 1]."""
    multiple_choice: int
    """Questions whose answer is one of their lettered options."""


class StratumFigures(Record):
    """The questions of one value of the stratum column."""

    name: str
    questions: int
    mixed_groups: int
    accuracy: Figure
    correlation: Figure
    strength: Figure
    compensation: Figure
    blind_accuracy: Figure
    blind_strength: Figure


class QuestionFigures(Record):
    """One question; the mappings are by state, None for a group that is not mixed."""

    row: int
    stratum: str | None
    responses: int
    correct: int
    blind_responses: int
    blind_correct: int
    chance: float
    correlation: dict[str, float | None]
    focus_difference: dict[str, float | None]
    decay: dict[str, float]


class Measures(Record):
    """All figures of a check."""

    counts: Counts
    accuracy: Figure
    mixed: Figure
    """Share of groups with right and wrong answers."""
    length: Outcomes
    """Tokens of a response, end token included."""
    length_correlation: Figure
    """Of the length with correctness within mixed groups."""
    states: dict[str, StateFigures]
    """By state, each of `STATES`."""
    blind: BlindFigures
    strata: dict[str, list[StratumFigures]]
    """By state; empty lists without a stratum column."""
    questions: list[QuestionFigures]


class Finding(Record):
    """A sentence of the verdict with the outcome of its rule."""

    holds: bool | None
    """None if the figures do not exist."""
    text: str


class Verdict(Record):
    """What the figures say about training with VGPO; rules and limits are in `vgpo.focus_check.verdict`."""

    gain: Gain
    focus_state: str
    """The state that the verdict is about."""
    headline: str
    reasons: list[str]
    compensation: Finding
    blind: Finding
    questions_needed: int | None
    """Questions that would decide; None where that is decided, or cannot be said."""
    recipe: list[str]
    """Lines of a recipe; empty where none is recommended."""
    advice: str


class Settings(Record):
    """How the responses were sampled."""

    template: str
    max_new_tokens: int
    limit: int
    samples: int
    blind_samples: int
    temperature: float
    seed: int
    stratum_column: str | None


class FocusCheck(Record):
    """The file."""

    version: int
    vgpo: str
    """Version of the package that wrote the file."""
    created: str
    model: str
    data: str
    settings: Settings
    verdict: Verdict
    measures: Measures

    def __repr__(self) -> str:
        return f"FocusCheck({self.model!r} on {self.data!r}: {self.verdict.headline!r})"
