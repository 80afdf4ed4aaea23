"""The page of a focus check: one HTML file without network access, rendered from the check's file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from jinja2 import PackageLoader

from vgpo.focus_check import records as check_records
from vgpo.focus_check.records import STATES, Figure, FocusCheck, Measures, StateFigures
from vgpo.pages import SHARED, embed_json, inlined, page_environment
from vgpo.pages.plots import PlotValues, tick_step
from vgpo.pages.texts import date, fixed, percent, truncate
from vgpo.pages.verdict import Tone, Verdict

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "tables.js", "downloads.js")
MAX_NAME_CHARACTERS = 200
CORRELATION = "Correlation, −1 to 1,"
WITHIN = "within groups that have right and wrong answers"
LATE_EARLY = "Mean ρ of the last half of a response over that of its first half"
MARGIN = 0.06  # of the range shown, at each end
NUM_TICKS = 3
TONES: dict[str, Tone] = {"gain": "gain", "none": "loss"}  # by what VGPO has to gain
MAX_DOTS = 400  # of a strip; if there are more groups, evenly spaced ones are drawn


@dataclass(frozen=True)
class Axis:
    """An axis with values from `low` to `high`, in units of the chart's view box."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round tick values with their labels."""
        step = tick_step(self.high - self.low, NUM_TICKS)
        digits = next(number for number in range(12) if abs(round(step, number) - step) < 1e-9 * step)
        return [
            (number * step, fixed(number * step + 0.0, digits))
            for number in range(ceil(self.low / step), floor(self.high / step) + 1)
        ]


@dataclass(frozen=True)
class Line:
    """A curve with its band, as SVG paths; empty without values."""

    outcome: str
    run: int
    curve: str
    band: str


@dataclass(frozen=True)
class Curves:
    """Focus by tenth of the response, for correct and wrong answers."""

    across: Axis
    down: Axis
    lines: list[Line]


@dataclass(frozen=True)
class Strip:
    """The difference of focus within each mixed group, sorted, above their mean with its interval."""

    across: Axis
    dots: list[tuple[float, float]]
    mean: Figure
    num_groups: int


@dataclass(frozen=True)
class TableRow:
    """A line of the table of figures: what it is, and one figure, or one per state."""

    title: str
    about: str
    figures: tuple[Figure, ...]
    digits: int = 3
    factor: float = 1.0


def render_check(check: FocusCheck) -> str:
    """Render a check as one self-contained HTML page. All text is escaped, and only the page's own script runs."""
    environment = page_environment(PackageLoader("vgpo.focus_check"))
    environment.filters.update(percent=percent, fixed=fixed, date=date, short=short)
    measures = check.measures
    scripts = [*(SHARED / name for name in SHARED_SCRIPTS), TEMPLATES / "focus_check.js"]
    return environment.get_template("focus_check.html.jinja").render(
        check=check,
        found=verdict_shown(check.verdict),
        measures=measures,
        states=STATES,
        groups=list(table_groups(measures)),
        curves={state: curves_of(measures.states[state]) for state in STATES},
        strips={state: strip_of(measures, state) for state in STATES},
        embedded=embed_json({"plots": plot_values(measures)}),
        **inlined([SHARED / "page.css", TEMPLATES / "focus_check.css"], scripts),
    )


def verdict_shown(verdict: check_records.Verdict) -> Verdict:
    """The verdict as all pages show theirs."""
    details = [*verdict.reasons, verdict.compensation.text, verdict.blind.text, verdict.advice]
    return Verdict(TONES.get(verdict.gain, "open"), verdict.headline, details)


def table_groups(measures: Measures) -> Iterable[tuple[str, list[TableRow]]]:
    """The sections of the table of figures, each with a heading."""
    rows = RowsByState([measures.states[state] for state in STATES])
    yield "Answers", answer_rows(measures)
    yield "Focus and correctness within groups", rows.of_focus()
    yield "Forgetting", rows.of_forgetting()
    yield "What the adaptive shaping would start with", rows.of_shaping()


@dataclass(frozen=True)
class RowsByState:
    """Lines of the table that have a figure for each state of a token."""

    states: list[StateFigures]

    def row(self, title: str, about: str, name: str, part: str | None = None, digits: int = 3) -> TableRow:
        found = [getattr(state, name) for state in self.states]
        return TableRow(title, about, tuple(getattr(one, part) if part else one for one in found), digits)

    def of_focus(self) -> list[TableRow]:
        at_length = f"Partial correlation of mean ρ with correctness given the length, {WITHIN}"
        difference = "Mean ρ of right less that of wrong answers to the same question"
        return [
            self.row("Correlation", f"{CORRELATION} of mean ρ with correctness, {WITHIN}", "correlation"),
            self.row("Correlation at equal length", at_length, "correlation_at_equal_length"),
            self.row("Focus, right less wrong", difference, "focus_difference", digits=4),
        ]

    def of_forgetting(self) -> list[TableRow]:
        difference = "Late/early ratio of right less that of wrong answers to the same question"
        decay = "Share of the focus that is lost along a response by a fitted line, median over groups"
        return [
            self.row("Late/early ratio, all answers", LATE_EARLY, "late_early", "all"),
            self.row("Late/early ratio, right answers", f"{LATE_EARLY}, right answers", "late_early", "right"),
            self.row("Late/early ratio, wrong answers", f"{LATE_EARLY}, wrong answers", "late_early", "wrong"),
            self.row("Late/early ratio, right less wrong", difference, "late_early_difference", digits=4),
            self.row("Fitted decay, median", decay, "decay"),
        ]

    def of_shaping(self) -> list[TableRow]:
        strength = "Strength of the adaptive shaping for this correlation, 0 to 1"
        share = "How much of the late compensation the measured forgetting keeps, 0 to 1, mean over groups"
        return [
            self.row("Earned strength λ", strength, "strength"),
            self.row("Share of β, measured forgetting", share, "compensation", "mean"),
        ]


def answer_rows(measures: Measures) -> list[TableRow]:
    """The figures that do not depend on the state of a token."""
    blind = measures.blind
    rows = [
        ("Accuracy, %", "Share of right responses", measures.accuracy, 1, 100),
        ("Groups of mixed accuracy, %", "Questions with right and wrong responses", measures.mixed, 1, 100),
        ("Tokens of a right answer", "Length with the end token, mean", measures.length.right, 1, 1),
        ("Tokens of a wrong answer", "Length with the end token, mean", measures.length.wrong, 1, 1),
        ("Accuracy without the image, %", "Share of right responses without the image", blind.accuracy, 1, 100),
        (
            "Always right without the image, %",
            "Questions with only right responses without the image",
            blind.always_right,
            1,
            100,
        ),
        ("Accuracy of guessing, %", "Expected from a guess; 0 for a question without options", blind.chance, 1, 100),
        (
            "Correlation of length and correctness",
            f"{CORRELATION} of the length with correctness, {WITHIN}",
            measures.length_correlation,
            3,
            1,
        ),
        ("Strength of the blind gate", "Strength λ that the blind gate leaves, 0 to 1", blind.strength, 3, 1),
    ]
    return [TableRow(title, about, (found,), digits, factor) for title, about, found, digits, factor in rows]


def curves_of(figures: StateFigures) -> Curves | None:
    """The chart of a state; None without values."""
    sides = {"right": figures.right_by_decile, "wrong": figures.wrong_by_decile}
    shown = [value for side in sides.values() for one in side for value in (one.value, one.low, one.high)]
    values = [value for value in shown if value is not None]
    if not values:
        return None
    across = Axis(0, 100, 46, 412)
    down = Axis(*padded_range(values), 196, 10)
    lines = [Line(name, run, *paths_of(side, across, down)) for run, (name, side) in enumerate(sides.items())]
    return Curves(across, down, lines)


def paths_of(side: Sequence[Figure], across: Axis, down: Axis) -> tuple[str, str]:
    """The curve through the values of the tenths, and the band of their intervals."""
    xs = [across.at(10 * tenth + 5) for tenth in range(len(side))]
    known = [(x, one.value) for x, one in zip(xs, side, strict=True) if one.value is not None]
    curve = " ".join(f"{x},{down.at(value)}" for x, value in known)
    bounded = [
        (x, down.at(one.low), down.at(one.high))
        for x, one in zip(xs, side, strict=True)
        if one.low is not None and one.high is not None
    ]
    there = [f"{x},{high}" for x, _, high in bounded]
    back = [f"{x},{low}" for x, low, _ in reversed(bounded)]
    return curve, " ".join([*there, *back])


def strip_of(measures: Measures, state: str) -> Strip | None:
    """The chart of a state; None without a mixed group."""
    found = sorted(
        value for one in measures.questions if (value := one.focus_difference[state]) is not None
    )  # fmt: skip
    if not found:
        return None
    shown = found[:: ceil(len(found) / MAX_DOTS)]
    reach = max(abs(found[0]), abs(found[-1])) or 1.0
    across = Axis(-reach * (1 + MARGIN), reach * (1 + MARGIN), 12, 408)
    height = Axis(0, max(1, len(shown) - 1), 14, 158)
    dots = [(across.at(value), height.at(place)) for place, value in enumerate(shown)]
    return Strip(across, dots, measures.states[state].focus_difference, len(found))


def plot_values(measures: Measures) -> dict[str, PlotValues]:
    """The values of each chart, by the id of its figure; a chart without values is left out."""
    plots: dict[str, PlotValues] = {}
    for state in STATES:
        if curves_of(measures.states[state]):
            plots[f"focus-{state}"] = curve_values(measures.states[state])
        found = [(one.row, one.focus_difference[state]) for one in measures.questions]
        groups: PlotValues = [[row, value] for row, value in found if value is not None]
        if groups:
            plots[f"difference-{state}"] = [["row", "right less wrong"], *groups]
    return plots


def curve_values(figures: StateFigures) -> PlotValues:
    head = [name + end for name in ("right", "wrong") for end in ("", " (low)", " (high)")]
    sides = zip(figures.right_by_decile, figures.wrong_by_decile, strict=True)
    rows: PlotValues = [
        [10 * tenth + 5, *(value for one in pair for value in (one.value, one.low, one.high))]
        for tenth, pair in enumerate(sides)
    ]
    return [["percent of the response", *head], *rows]


def padded_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = MARGIN * (high - low) or 0.01
    return low - room, high + room


def short(text: str) -> str:
    return truncate(text, MAX_NAME_CHARACTERS)
