"""Images of digit grids, questions about them, and the chains of thought that answer them.

A *setting* defines how a question relates to its image:

- ``image``: the digits are in the image alone.
- ``text``: they are also in the question; the image is not needed.
- ``misleading``: the question corrects some rows, and the image shows what they were before.
- ``forgetting``: rows are looked at one after another, and each look counts.
- ``mixed``: a question of any of these, drawn evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vgpo.toy.scans import CELL, Scans

MAX_SIDE = 4  # the tokenizer and the warm start know grids of up to 4 x 4
SETTINGS = ("image", "text", "misleading", "forgetting", "mixed")  # the last one is of all others
GLYPHS = ("scans", "font")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The difficulty dial.

    Attributes:
        rows: rows of the grid, 1 to 4.
        columns: columns of the grid, 1 to 4.
        digits: the digits that occur, at least two different ones of 0 to 9.
        kinds: the kinds of question asked, drawn evenly; any of ``QUESTION_KINDS``. ``forgetting`` has one of its own.
        setting: how the question relates to the image, one of ``SETTINGS``.
        edited: change one digit of each image so that the answer changes; the rest stays. Questions that no single
            digit can change are left out.
        glyphs: ``scans`` of handwriting, or digits of a printed ``font``, which no training image has.

    Raises:
        ValueError: a value is out of range or has no effect; the message names the field, the value and the range.
    """

    rows: int = 3
    columns: int = 3
    digits: tuple[int, ...] = tuple(range(10))
    kinds: tuple[str, ...] = ("count", "largest", "row_sum")
    setting: str = "image"
    edited: bool = False
    glyphs: str = "scans"

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
        for name, choices in (("setting", SETTINGS), ("glyphs", GLYPHS)):
            if vars(self)[name] not in choices:
                raise ValueError(f"{name} is {vars(self)[name]!r}; expected one of {', '.join(choices)}")
        if self.setting in ("misleading", "forgetting", "mixed") and self.rows < 2:
            raise ValueError(f"rows is {self.rows}; expected at least 2 with setting {self.setting}")
        if self.edited and self.setting in ("text", "mixed"):
            raise ValueError(
                f"edited has no effect with setting {self.setting}, whose answers do not come only from the image; "
                "expected image, misleading or forgetting"
            )

    @property
    def strata(self) -> tuple[str, ...]:
        """The settings that questions are drawn from."""
        return SETTINGS[:-1] if self.setting == "mixed" else (self.setting,)


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
        except (ValueError, KeyError) as error:
            raise ValueError(f"found {part!r} in {text!r}; {name} takes {_FORMS[name]}") from error
    return TaskSettings(**values)  # type: ignore[arg-type]


_PARSERS: dict[str, Callable[[str], object]] = {
    "rows": int,
    "columns": int,
    "digits": lambda value: tuple(map(int, value.split("+"))),
    "kinds": lambda value: tuple(value.split("+")),
    "setting": str,
    "edited": {"true": True, "false": False}.__getitem__,
    "glyphs": str,
}
_FORMS = {
    "rows": "a whole number",
    "columns": "a whole number",
    "digits": "whole numbers, several joined by +",
    "edited": "true or false",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image.

    Attributes:
        kind: the question's kind, a key of ``QUESTION_KINDS``, or ``span`` in the setting ``forgetting``.
        setting: the setting that it is drawn from.
        scans: which scan is in each cell, int (rows, columns), indices into the ``Scans`` it was drawn from.
        problem: the question, with an ``<image>`` mark where the image goes.
        answer: the right answer: a whole number, or digits with spaces between, as text.
        chain: the full answer: reading and working inside ``<think>``, then the ``\\boxed{}`` answer.
        forgetful: the same with the bad habit of the setting: only the first row of the image is looked at; in
            ``misleading`` the correction is ignored; in ``forgetting`` later rows are guessed.
    """

    kind: str
    setting: str
    scans: np.ndarray
    problem: str
    answer: str
    chain: str
    forgetful: str


@dataclass(frozen=True)
class Asked:
    """A question over a grid of digits.

    Attributes:
        kind: its kind.
        text: its words.
        grid: the digits, int (rows, columns).
        solve: chain and answer for a grid of which so many rows are looked at.
        redraw: other digits for a row, (columns,).
    """

    kind: str
    text: str
    grid: np.ndarray
    solve: Callable[[np.ndarray, int], tuple[str, str]]
    redraw: Callable[[], np.ndarray]


def draw_question(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question:
    """Draw a question, its image and its answer; the same generator state gives the same question."""
    while True:
        if question := _draw(rng, scans, settings):
            return question


def _draw(rng: np.random.Generator, scans: Scans, settings: TaskSettings) -> Question | None:
    """A question; None where none of its digits can be edited."""
    strata = settings.strata
    setting = strata[rng.integers(len(strata))] if len(strata) > 1 else strata[0]
    edits = rng.spawn(1)[0] if settings.edited else None  # a stream of its own: the question stays the same
    if setting == "forgetting":
        return _span(rng, scans, settings, edits)
    kind = settings.kinds[rng.integers(len(settings.kinds))]
    asked = QUESTION_KINDS[kind](rng, settings)
    shown, corrected = asked.grid, np.zeros(settings.rows, dtype=bool)
    if setting == "misleading":
        shown, corrected = _corrected(rng, asked)
    pictured = _pick_scans(rng, scans, shown)
    if edits is not None:
        solve = asked.solve
        change = _edit(edits, settings, ~corrected, lambda grid: solve(grid, settings.rows)[1], asked.grid)
        if change is None:
            return None
        asked = replace(asked, grid=change.apply(asked.grid))
        pictured = change.apply(pictured, scans, edits)
    shown = scans.labels[pictured]
    written = {"text": ~corrected, "misleading": corrected}.get(setting, np.zeros(0, dtype=bool))
    lines = " ".join(f"{_row(int(i), asked.grid[i])}." for i in np.flatnonzero(written))
    chain, answer = asked.solve(asked.grid, settings.rows)
    forgetful, _ = asked.solve(shown, settings.rows) if setting == "misleading" else asked.solve(asked.grid, 1)
    words = {"text": f"{lines} ", "misleading": f"Now {lines} "}.get(setting, "")
    return Question(
        kind=kind, setting=setting, scans=pictured, problem=f"<image>{words}{asked.text}", answer=answer, chain=chain,
        forgetful=forgetful,
    )  # fmt: skip


def render(question: Question, scans: Scans) -> Image.Image:
    """The image, RGB, 28 pixels a cell: white digits on black."""
    rows, columns = question.scans.shape
    cells = scans.pixels[question.scans]  # (rows, columns, 28, 28)
    grey = cells.transpose(0, 2, 1, 3).reshape(rows * CELL, columns * CELL)
    return Image.fromarray(grey).convert("RGB")


def _count(rng: np.random.Generator, settings: TaskSettings) -> Asked:
    # The digit asked for fills 30 % of the cells: else most answers would be 0 or 1.
    target = int(rng.choice(settings.digits))
    others = [digit for digit in settings.digits if digit != target]

    def draw(*shape: int) -> np.ndarray:
        return np.where(rng.random(shape) < 0.3, target, rng.choice(others, size=shape))

    grid = draw(settings.rows, settings.columns)
    solve = _summary("total", lambda digits: (digits == target).sum())
    return Asked("count", f"How many {target}s are in the picture?", grid, solve, lambda: draw(settings.columns))


def _largest(rng: np.random.Generator, settings: TaskSettings) -> Asked:
    # A drawn ceiling: else almost every largest digit would be 9.
    digits = np.sort(settings.digits)
    ceiling = rng.integers(1, len(digits))

    def draw(*shape: int) -> np.ndarray:
        return rng.choice(digits[: ceiling + 1], size=shape)

    grid = draw(settings.rows, settings.columns)
    text = "What is the largest digit in the picture?"
    return Asked("largest", text, grid, _summary("largest", np.max), lambda: draw(settings.columns))


def _row_sum(rng: np.random.Generator, settings: TaskSettings) -> Asked:
    grid = rng.choice(settings.digits, size=(settings.rows, settings.columns))
    row = int(rng.integers(settings.rows))

    def solve(grid: np.ndarray, num_rows: int) -> tuple[str, str]:
        del num_rows
        answer = str(grid[row].sum())
        sums = " ".join(str(value) for value in np.cumsum(grid[row])[1:])
        return f"<think>{_row(row, grid[row])}, {sums}.</think>\\boxed{{{answer}}}", answer

    def redraw() -> np.ndarray:
        return rng.choice(settings.digits, size=settings.columns)

    return Asked("row_sum", f"What is the sum of row {row + 1}?", grid, solve, redraw)


QUESTION_KINDS: dict[str, Callable[[np.random.Generator, TaskSettings], Asked]] = {
    "count": _count,
    "largest": _largest,
    "row_sum": _row_sum,
}


def _summary(noun: str, summarise: Callable[[np.ndarray], np.integer]) -> Callable[[np.ndarray, int], tuple[str, str]]:
    """Solves a question over the complete image by reading row after row and summarising each."""

    def solve(grid: np.ndarray, num_rows: int) -> tuple[str, str]:
        rows = [f"{_row(i, row)}, {summarise(row)}." for i, row in enumerate(grid[:num_rows])]
        answer = str(summarise(grid[:num_rows]))
        return _chain(rows, noun, answer), answer

    return solve


def _corrected(rng: np.random.Generator, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """The grid that a misleading image shows, (rows, columns), and which rows the question corrects, bool (rows,)."""
    rows = len(asked.grid)
    corrected = np.zeros(rows, dtype=bool)
    corrected[rng.permutation(rows)[: rng.integers(1, rows)]] = True
    shown = asked.grid.copy()
    for row in np.flatnonzero(corrected):
        shown[row] = asked.redraw()
    return shown, corrected


@dataclass(frozen=True)
class Change:
    """One digit of a grid that is replaced."""

    row: int
    column: int
    digit: int

    def apply(
        self, grid: np.ndarray, scans: Scans | None = None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """A grid of digits, or with `scans` one of their indices, with the change."""
        value = self.digit if scans is None or rng is None else rng.choice(scans.of_digit(self.digit))
        changed = grid.copy()
        changed[self.row, self.column] = value
        return changed


def _edit(
    rng: np.random.Generator, settings: TaskSettings, rows: np.ndarray, answer: Callable[[np.ndarray], str],
    grid: np.ndarray,
) -> Change | None:  # fmt: skip
    """A change of one digit, in the given rows (bool), that changes the answer; None if there is none."""
    changes = [
        Change(int(row), column, digit)
        for row in np.flatnonzero(rows)
        for column in range(settings.columns)
        for digit in settings.digits
    ]
    before = answer(grid)
    order = rng.permutation(len(changes))
    return next((changes[i] for i in order if answer(changes[i].apply(grid)) != before), None)


# How many rows a question asks for, how often, and how often a drifting chain looks at one of the later half of them.
SPAN_LENGTHS = {1: 0.2, 2: 0.0, 3: 0.4, 4: 0.4}
LATE_LOOKS = {1: 1.0, 2: 0.5, 3: 0.5, 4: 0.15}
# As many as the tokens of a look, so that lengths do not differ.
WORDS_OF_A_GUESS = ("much", "the", "same", "as", "it", "was")


def _span(
    rng: np.random.Generator, scans: Scans, settings: TaskSettings, edits: np.random.Generator | None
) -> Question | None:
    """The largest digit of each of some rows, which are looked at one after another: each look counts.

    In a drifting chain, words replace the digits of a later row, and its largest digit is guessed.
    """
    grid = rng.choice(settings.digits, size=(settings.rows, settings.columns))
    lengths = [length for length in SPAN_LENGTHS if length <= settings.rows]
    shares = np.array([SPAN_LENGTHS[length] for length in lengths])
    length = int(rng.choice(lengths, p=shares / shares.sum()))
    first = int(rng.integers(settings.rows - length + 1))
    span = list(range(first, first + length))
    is_late = np.arange(length) >= (length + 1) // 2
    looks = (rng.random(length) < LATE_LOOKS[length]) | ~is_late
    guesses = rng.choice(settings.digits, size=(length, settings.columns)).max(axis=1)
    pictured = _pick_scans(rng, scans, grid)
    if edits is not None:
        asked_rows = np.isin(np.arange(settings.rows), span)
        change = _edit(edits, settings, asked_rows, lambda grid: _spaced(grid[span].max(axis=1)), grid)
        if change is None:
            return None
        grid, pictured = change.apply(grid), change.apply(pictured, scans, edits)

    def write(looked: np.ndarray) -> str:
        digits = np.where(looked, grid[span].max(axis=1), guesses)
        guess = " ".join(WORDS_OF_A_GUESS[: settings.columns + 2])
        rows = [
            f"{_row(row, grid[row])}, {digit}." if look else f"row {row + 1}: {guess}."
            for row, look, digit in zip(span, looked, digits, strict=True)
        ]
        return f"<think>{' '.join(rows)} that is all</think>\\boxed{{{_spaced(digits)}}}"

    rows = f"row {first + 1}" if length == 1 else f"rows {first + 1} to {first + length}"
    return Question(
        kind="span",
        setting="forgetting",
        scans=pictured,
        problem=f"<image>What are the largest digits of {rows}?",
        answer=_spaced(grid[span].max(axis=1)),
        chain=write(np.ones(length, dtype=bool)),
        forgetful=write(looks),
    )


def _chain(rows: list[str], noun: str, answer: str) -> str:
    return f"<think>{' '.join(rows)} {noun} {answer}</think>\\boxed{{{answer}}}"


def _row(index: int, digits: np.ndarray) -> str:
    return f"row {index + 1}: {_spaced(digits)}"


def _spaced(digits: np.ndarray) -> str:
    return " ".join(str(digit) for digit in digits)


def _pick_scans(rng: np.random.Generator, scans: Scans, grid: np.ndarray) -> np.ndarray:
    return np.array([[rng.choice(scans.of_digit(digit)) for digit in row] for row in grid])
