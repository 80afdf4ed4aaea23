"""The result of a page in words: one sentence on top, and what goes with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vgpo.pages.texts import points_interval, truncate

MAX_NAME_CHARACTERS = 80  # of a name in a sentence

Tone = Literal["gain", "loss", "open"]  # colour of the verdict: the interval is above 0, below it, or holds it


@dataclass(frozen=True)
class Verdict:
    """What a page shows on top.

    Attributes:
        tone: Its colour.
        headline: The result, one sentence.
        details: Further sentences.
    """

    tone: Tone
    headline: str
    details: Sequence[str] = ()


def tone_of(low: float | None, high: float | None) -> Tone:
    """The tone of a difference by its interval; open without one."""
    if low is None or high is None or low <= 0 <= high:
        return "open"
    return "gain" if low > 0 else "loss"


def difference_sentence(
    name: str, base: str, measure: str, difference: float, low: float | None, high: float | None, basis: str
) -> str:
    """B is 3.2 points above A on held-out accuracy [−1.0, +7.4] (400 questions, paired)

    Args:
        name: What is compared.
        base: With what.
        measure: What was measured.
        difference: Of shares, in [-1, 1].
        low, high: Its interval, None if there is none.
        basis: What the interval is of.
    """
    shown = f"{100 * abs(difference):.1f}"
    relation = "level with" if shown == "0.0" else f"{shown} points {'above' if difference > 0 else 'below'}"
    interval = "" if low is None or high is None else f" {points_interval(low, high)}"
    return f"{quoted(name)} is {relation} {quoted(base)} on {measure}{interval} ({basis})"


def chance_note(low: float | None, high: float | None) -> list[str]:
    """What to say of an interval that holds 0."""
    held = low is not None and high is not None and low <= 0 <= high
    return ["The 95 % interval holds 0: the difference may be chance."] if held else []


def quoted(name: str) -> str:
    """A name of bounded length for a sentence."""
    return truncate(" ".join(name.split()) or "(no name)", MAX_NAME_CHARACTERS)
