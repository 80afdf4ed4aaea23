"""Pictures of digit grids, questions about them, and the chains of thought that answer them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vgpo.toy.scans import CELL, Scans

MAX_SIDE = 4  # the tokenizer and the warm start know grids of up to 4 x 4


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The difficulty dial.

    Attributes:
        rows: rows of the grid, 1 to 4.
        columns: columns of the grid, 1 to 4.
        digits: the digits that occur, at least two different ones of 0 to 9.
        kinds: the kinds of question asked, drawn evenly; any of ``QUESTION_KINDS``.

    Raises:
        ValueError: a value is out of range; the message names the field, the value and the range.
    """

    rows: int = 3
    columns: int = 3
    digits: tuple[int, ...] = tuple(range(10))
    kinds: tuple[str, ...] = ("count", "largest", "row_sum")

    def __post_init__(self) -> None:
        for name, side in (("rows", self.rows), ("columns", self.columns)):
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"{name} is {side}; expected 1 to {MAX_SIDE}")
        if len(set(self.digits)) != len(self.digits) or len(self.digits) < 2:
            raise ValueError(f"digits is {self.digits}; expected at least two digits, each named once")
        if not set(self.digits) <= set(range(10)):
            raise ValueError(f"digits is {self.digits}; expected digits from 0 to 9")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"kinds is {self.kinds}; expected at least one question kind, each named once")
        for kind in self.kinds:
            if kind not in QUESTION_KINDS:
                raise ValueError(f"kinds names {kind!r}; expected some of {', '.join(QUESTION_KINDS)}")


def parse_task(text: str) -> TaskSettings:
    """The dial as one word, as in ``rows=4,columns=4,digits=1+3+7,kinds=count+largest``; what is left out is default.

    Raises:
        ValueError: no such field, a field twice, or a value that does not fit; names it.
    """
    values: dict[str, object] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _PARSERS or name in values:
            raise ValueError(f"found {part!r} in {text!r}; expected each of {', '.join(_PARSERS)} once, as name=value")
        try:
            values[name] = _PARSERS[name](value)
        except ValueError as error:
            raise ValueError(f"found {part!r} in {text!r}; {name} takes whole numbers, several joined by +") from error
    return TaskSettings(**values)  # type: ignore[arg-type]


_PARSERS: dict[str, Callable[[str], object]] = {
    "rows": int,
    "columns": int,
    "digits": lambda value: tuple(map(int, value.split("+"))),
    "kinds": lambda value: tuple(value.split("+")),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture.

    Attributes:
        kind: the question's kind, a key of ``QUESTION_KINDS``.
        scans: which scan lies in each cell, int (rows, columns), indices into the ``Scans`` it was drawn from.
        problem: the question, with an ``<image>`` mark where the picture goes.
        answer: the right answer, a whole number as text.
        chain: the full answer: reading and working inside ``<think>``, then the ``\\boxed{}`` answer.
        forgetful: the same, but only the first row of the picture is looked at.
    """

    kind: str
    scans: np.ndarray
    problem: str
    answer: str
    chain: str
    forgetful: str


def draw_question(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question:
    """Draw a question, its picture and its answer; the same generator state gives the same question."""
    kind = settings.kinds[rng.integers(len(settings.kinds))]
    return QUESTION_KINDS[kind](rng, scans, settings)


def render(question: Question, scans: Scans) -> Image.Image:
    """The picture, RGB, 28 pixels a cell: white digits on black."""
    rows, columns = question.scans.shape
    cells = scans.pixels[question.scans]  # (rows, columns, 28, 28)
    grey = cells.transpose(0, 2, 1, 3).reshape(rows * CELL, columns * CELL)
    return Image.fromarray(grey).convert("RGB")


def _count(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question:
    # The digit asked for fills 30 % of the cells: else most answers would be 0 or 1.
    target = int(rng.choice(settings.digits))
    others = [digit for digit in settings.digits if digit != target]
    shape = (settings.rows, settings.columns)
    grid = np.where(rng.random(shape) < 0.3, target, rng.choice(others, size=shape))
    return _summary_question(
        rng, scans, grid, "count", f"How many {target}s are in the picture?", "total", lambda d: (d == target).sum()
    )


def _largest(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question:
    # A drawn ceiling: else almost every largest digit would be 9.
    digits = np.sort(settings.digits)
    ceiling = rng.integers(1, len(digits))
    grid = rng.choice(digits[: ceiling + 1], size=(settings.rows, settings.columns))
    return _summary_question(
        rng, scans, grid, "largest", "What is the largest digit in the picture?", "largest", np.max
    )


def _row_sum(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question:
    grid = rng.choice(settings.digits, size=(settings.rows, settings.columns))
    row = int(rng.integers(settings.rows))
    answer = str(grid[row].sum())
    sums = " ".join(str(value) for value in np.cumsum(grid[row])[1:])
    chain = f"<think>row {row + 1}: {_spaced(grid[row])}, {sums}.</think>\\boxed{{{answer}}}"
    return Question(
        kind="row_sum",
        scans=_pick_scans(rng, scans, grid),
        problem=f"<image>What is the sum of row {row + 1}?",
        answer=answer,
        chain=chain,
        forgetful=chain,
    )


QUESTION_KINDS: dict[str, Callable[[np.random.Generator, Scans, TaskSettings], Question]] = {
    "count": _count,
    "largest": _largest,
    "row_sum": _row_sum,
}


def _summary_question(
    rng: np.random.Generator,
    scans: Scans,
    grid: np.ndarray,
    kind: str,
    text: str,
    noun: str,
    summarise: Callable[[np.ndarray], np.integer],
) -> Question:
    """A question over the whole picture, answered by reading row after row and summarising each."""
    rows = [f"row {i + 1}: {_spaced(row)}, {summarise(row)}." for i, row in enumerate(grid)]
    answer, forgetful_answer = str(summarise(grid)), str(summarise(grid[0]))
    return Question(
        kind=kind,
        scans=_pick_scans(rng, scans, grid),
        problem=f"<image>{text}",
        answer=answer,
        chain=_chain(rows, noun, answer),
        forgetful=_chain(rows[:1], noun, forgetful_answer),
    )


def _chain(rows: list[str], noun: str, answer: str) -> str:
    return f"<think>{' '.join(rows)} {noun} {answer}</think>\\boxed{{{answer}}}"


def _spaced(digits: np.ndarray) -> str:
    return " ".join(str(digit) for digit in digits)


def _pick_scans(rng: np.random.Generator, scans: Scans, grid: np.ndarray) -> np.ndarray:
    return np.array([[rng.choice(scans.of_digit(digit)) for digit in row] for row in grid])
