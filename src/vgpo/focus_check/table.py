"""A focus check as a terminal table."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from vgpo.focus_check.records import STATES, Figure, FocusCheck, Measures
from vgpo.pages.texts import fixed
from vgpo.terminal import right
from vgpo.text import visible

PERCENT = 100.0


def verdict_text(check: FocusCheck) -> str:
    """The verdict in lines: headline, reasons, recipe."""
    verdict = check.verdict
    lines = [f"{check.model} on {check.data}: {verdict.headline}.", *verdict.reasons]
    lines += [verdict.compensation.text, verdict.blind.text, verdict.advice, *(f"    {one}" for one in verdict.recipe)]
    return "\n".join(map(visible, lines))


def check_table(measures: Measures, focus_state: str) -> Table:
    """One row per figure, with its interval and n, the number of questions that have it.

    Correlations are with correctness. Strata are shown for one state.
    """
    table = Table(
        Column("figure"), "state", right("value"), right("95 % interval"), right("n"), box=SIMPLE_HEAD,
        pad_edge=False, show_edge=False,
    )  # fmt: skip
    for title, state, figure, factor in table_rows(measures, focus_state):
        table.add_row(Text(visible(title)), state, *figure_cells(figure, factor))
    return table


def table_rows(measures: Measures, focus_state: str) -> Iterator[tuple[str, str, Figure, float]]:
    """Title, state, figure and display factor."""
    yield "accuracy, %", "", measures.accuracy, PERCENT
    yield "groups of mixed accuracy, %", "", measures.mixed, PERCENT
    yield "accuracy without the image, %", "", measures.blind.accuracy, PERCENT
    yield "tokens of a response", "", measures.length.all, 1
    yield "correlation of length", "", measures.length_correlation, 1
    for state in STATES:
        figures = measures.states[state]
        yield "correlation of focus", state, figures.correlation, 1
        yield "  at equal length", state, figures.correlation_at_equal_length, 1
        yield "late/early, right answers", state, figures.late_early.right, 1
        yield "late/early, wrong answers", state, figures.late_early.wrong, 1
        yield "late/early, right less wrong", state, figures.late_early_difference, 1
        yield "fitted decay", state, figures.decay, 1
        yield "adaptive: earned strength", state, figures.strength, 1
        yield "adaptive: share of beta", state, figures.compensation.mean, 1
    yield "adaptive: blind gate", "", measures.blind.strength, 1
    for stratum in measures.strata[focus_state]:
        yield f"{stratum.name}: correlation of focus", focus_state, stratum.correlation, 1
        yield f"{stratum.name}: earned strength", focus_state, stratum.strength, 1


def figure_cells(figure: Figure, factor: float) -> tuple[str, str, str]:
    digits = 1 if factor == PERCENT else 3

    def cell(value: float | None) -> str:
        return fixed(None if value is None else factor * value, digits)

    interval = "–" if figure.low is None else f"{cell(figure.low)} to {cell(figure.high)}"
    return cell(figure.value), interval, str(figure.count)
