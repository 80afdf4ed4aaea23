"""Reading an answer as text: the box, the choice letter, and what can be decided without algebra.

Everything here is string work in linear time, safe on hostile text of any length.
"""

import re
from decimal import Decimal

MAX_SYMBOLIC_LENGTH = 1000  # characters; a longer answer is compared as text only

_BOX = "\\boxed{"

_TEXT_MACRO = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")  # 15 digits: where mathruler's float comparison is still exact
_DECIMAL = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,6})?")  # beyond 6 places mathruler rounds to an integer
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a macro or an escaped brace is passed over
_SIGNS = {"−": "-", "°": r"^\circ"}  # as Unicode has them and as LaTeX does
_GROUPING_BLANK = re.compile(r"(?<=[0-9])\s(?=[0-9]{3}(?![0-9]))")
_ADDING_BLANK = re.compile(r"(?<=[0-9])(?<!frac [0-9])\s+(?=[0-9])")
_GOLD_CHOICE = re.compile(r"\(([A-J])\)|([A-J])[.:)]?")
_CHOICE = re.compile(
    r"""(?:\(([a-j])\)|([a-j])[.:)])                    # (A), A., A: or A)
        (?:(?=\s)(?!\s*(?:or|and|\(?[a-j]\))(?!\w))     # and a text that does not go on with another letter,
           (?:(?!\s\(?[a-j][.:)]\s).)*)?                # nor names one like the first
      | ([a-j])
    """,
    re.VERBOSE | re.DOTALL,
)
_BETWEEN_CHOICES = re.compile(r"[,;\s]|\band\b")
_ONE_OF_CHOICES = re.compile(r"\([A-J]\)|[A-J]")


def extract_boxed(text: str) -> str | None:
    r"""The stripped content of the last `\boxed{...}` in `text`.

    None when there is no box or the last one is never closed; "" when it is empty. Linear in `len(text)`.
    """
    start = text.rfind(_BOX)
    if start == -1:
        return None
    start += len(_BOX)
    end = _closing_brace(text, start)
    return None if end is None else text[start:end].strip()


def strip_outer_box(gold: str) -> str:
    r"""`gold` without blanks around it and without one `\boxed{...}` that encloses all of it."""
    gold = gold.strip()
    if gold.startswith(_BOX) and _closing_brace(gold, len(_BOX)) == len(gold) - 1:
        return gold[len(_BOX) : -1].strip()
    return gold


def canonical_answer(text: str) -> str:
    """`text` with minus and degree signs as LaTeX writes them, and without blanks between digits.

    "1 000" is 1000, and "1 1/2" is 1+1/2. mathruler would read it so too, but for 11/2 before that.
    """
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    return _ADDING_BLANK.sub("+", _GROUPING_BLANK.sub("", text))


def choice_letter(gold: str) -> str | None:
    r"""The capital letter, A-J, of a gold that is one choice: `A`, `(A)`, `A.`, `A:`, `A)`, also inside `\text{}`."""
    choice = _GOLD_CHOICE.fullmatch(_without_macros(strip_outer_box(gold)))
    return choice and (choice[1] or choice[2])


def compare_text(answer: str | None, gold: str) -> bool | None:
    """Whether `answer` is right, as far as text alone can tell; None leaves it to the symbolic check.

    `answer` is the content of a box or None (no answer, never right), `gold` a non-empty answer without box; both
    are `canonical`.
    A gold that is a `choice_letter` is a multiple-choice answer and always decided here. A gold of several, "A, C"
    or "AC" in alphabetical order, is a set: another list of letters is right if it is the same set.
    """
    if not answer:
        return False
    if answer == gold:
        return True
    if letter := choice_letter(gold):
        return _chosen(answer) == letter
    if max(len(answer), len(gold)) > MAX_SYMBOLIC_LENGTH:
        return False
    right, given = _gold_choices(gold), _choice_letters(answer)
    if right and given:
        return set(given) == set(right)
    answer, gold = _normalise(answer), _normalise(gold)
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    if _DECIMAL.fullmatch(answer) and _DECIMAL.fullmatch(gold):
        return Decimal(answer) == Decimal(gold)
    return None


def is_words(text: str) -> bool:
    """Whether `text` is words, not mathematics: no digit, no macro but an enclosing one, two letters in a row."""
    return re.fullmatch(r"[^\d\\]*[^\W\d_]{2}[^\d\\]*", _unwrap(text)) is not None


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes a group whose content begins at `start`; None if it stays open."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
        if depth == 0:
            return brace.start()
    return None


def _unwrap(text: str) -> str:
    r"""`text` without `$` around it and without one `\text{}` or `\textbf{}` that encloses all of it."""
    text = text.strip().strip("$").strip()
    macro = _TEXT_MACRO.fullmatch(text)
    return macro.group(1).strip() if macro else text


def _without_macros(text: str) -> str:
    r"""`text` without `$` around it and with the content of each `\text{}` and `\textbf{}` in its place."""
    return _TEXT_MACRO.sub(r"\1", text.strip().strip("$")).strip()


def _normalise(text: str) -> str:
    return "".join(_unwrap(text).split()).lower()


def _chosen(answer: str) -> str | None:
    """The letter of an answer like a `choice_letter`, in lower case too, alone or before the text of the choice."""
    choice = _CHOICE.fullmatch(_without_macros(answer).lower())
    return (choice[1] or choice[2] or choice[3]).upper() if choice else None


def _choice_letters(text: str) -> list[str] | None:
    r"""The letters of `AC`, `A, C`, `C and A`, `(A); (C)`, also inside `\text{}`; None for anything else."""
    parts = [part for part in _BETWEEN_CHOICES.split(_unwrap(text)) if part]
    letters = [part.strip("()") for part in (list(parts[0]) if len(parts) == 1 else parts)]
    listed = all(map(_ONE_OF_CHOICES.fullmatch, letters if len(parts) == 1 else parts))
    return letters if listed and len(set(letters)) == len(letters) > 1 else None


def _gold_choices(gold: str) -> list[str] | None:
    """The letters of a gold that is a set; "BAD" and "DA" are names, the keys of a set stand in their order."""
    letters = _choice_letters(gold)
    if letters and "".join(letters) == _unwrap(gold) and letters != sorted(letters):
        return None
    return letters
