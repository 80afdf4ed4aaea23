"""The result of a focus check, version 1: one record per JSON object of its file (docs/focus_check.md)."""

from typing import Annotated, Literal

from pydantic import Field

from vgpo.records import Record

VERSION = 1
STATES = READING, PREDICTING = "reading", "predicting"  # values of `vgpo.equations.FocusState`, the paper's first

Gain = Literal["gain", "none", "undecided", "too few"]


class FocusCheckError(ValueError):
    """A check that cannot be run; the message says what was found, what was expected and how to fix it."""


class Figure(Record):
    """A figure with its 95 % bootstrap interval over questions."""

    value: float | None
    """None if no question has it."""
    low: float | None
    high: float | None
    """None if fewer than two questions have the figure."""
    count: int
    """Number of questions that have the figure."""


class Outcomes(Record):
    """A figure over all, over correct and over wrong responses."""

    all: Figure
    right: Figure
    wrong: Figure


class Compensation(Record):
    """Distribution over groups of the share of beta that the adaptive shaping would apply; values in [0, 1]."""

    mean: Figure
    at_zero: float
    """Share of groups without compensation."""
    at_full: float
    """Share of groups with the full beta."""
    quartiles: Annotated[list[float], Field(min_length=3, max_length=3)]
    """25 %, 50 % and 75 %."""


class StateFigures(Record):
    """Figures for one hidden state per token: the one after reading it, or the one that predicts it."""

    focus: Outcomes
    """Mean rho of a response."""
    late_early: Outcomes
    """Mean rho of the last half of a response over that of its first half."""
    late_early_difference: Figure
    """Late/early ratio of correct minus that of wrong answers to the same question."""
    focus_difference: Figure
    """Mean rho of correct minus that of wrong answers to the same question."""
    correlation: Figure
    """Correlation of mean rho with correctness within mixed groups, in [-1, 1]."""
    correlation_at_equal_length: Figure
    """The same given the length of the response (partial correlation)."""
    decay: Figure
    """Median over groups of f, the share of the focus that is lost along a response by a fitted line; 0 for a group
    without such a line."""
    strength: Figure
    """Lambda of the adaptive shaping for this correlation, in [0, 1]."""
    compensation: Compensation
    right_by_decile: Annotated[list[Figure], Field(min_length=10, max_length=10)]
    wrong_by_decile: Annotated[list[Figure], Field(min_length=10, max_length=10)]


class Counts(Record):
    """Sample sizes of the check."""

    questions: int
    without_image: int
    """Rows of the dataset that were skipped because they have no image."""
    responses: int
    truncated: int
    """Responses truncated at the token limit."""
    mixed_groups: int
    """Questions with both correct and wrong answers."""


class BlindFigures(Record):
    """Answers to the questions without their images."""

    accuracy: Figure
    always_right: Figure
    """Share of questions with only correct answers."""
    chance: Figure
    """Expected accuracy of guessing; 0 for a question without options."""
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
    """One question; mappings are by state, None for a group that is not mixed."""

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
    """Share of groups with both correct and wrong answers."""
    length: Outcomes
    """Tokens of a response, including the end token."""
    length_correlation: Figure
    """Correlation of the length with correctness within mixed groups."""
    states: dict[str, StateFigures]
    """By state, for each of `STATES`."""
    blind: BlindFigures
    strata: dict[str, list[StratumFigures]]
    """By state; empty lists without a stratum column."""
    questions: list[QuestionFigures]


class Finding(Record):
    """A sentence of the verdict with the outcome of its rule."""

    holds: bool | None
    """None if the figures are missing."""
    text: str


class Verdict(Record):
    """The conclusion about training with VGPO; rules and limits are in `vgpo.focus_check.verdict`."""

    gain: Gain
    focus_state: str
    """The hidden state that the verdict refers to."""
    headline: str
    reasons: list[str]
    compensation: Finding
    blind: Finding
    questions_needed: int | None
    """Number of questions needed for a decision; None if it is decided or unknown."""
    recipe: list[str]
    """Lines of a recipe; empty if none are recommended."""
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
