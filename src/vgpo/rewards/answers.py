"""Reading an answer as text: the box, the choice letter, and what can be decided without algebra.

Everything here is string work in linear time, safe on hostile text of any length.
"""

import re

_BOX = "\\boxed{"
_MAX_SYMBOLIC_LENGTH = 1000  # characters; a longer answer is compared as text only

_TEXT_MACRO = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
# A blank between two digits is kept: "1 1/2" is not "11/2".
_IDLE_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")  # 15 digits: where mathruler's float comparison is still exact
_CHOICE = re.compile(r"\(([a-j])\)|([a-j])(?:[.:](?:\s.*)?)?", re.DOTALL)
_REFUSED = re.compile(
    r"""(?:\^|\*\*)[\s{(+-]*(?:[0-9.]+|[a-z])\s*(?:\^|\*\*)   # a power in the exponent of a power
      | (?:\^|\*\*)[\s{(+-]*[0-9]{5}                          # an exponent of five digits or more
      | (?<!\\)!                                              # a factorial; \! is only a thin space
      | ["'`;@\#] | __ | [a-z_)\]]\s*\.\s*[a-z_]              # Python syntax that is no mathematics
    """,
    re.VERBOSE | re.IGNORECASE,
)


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


def textual_verdict(answer: str | None, gold: str) -> bool | None:
    """Whether `answer` is right, as far as text alone can tell; None leaves it to the symbolic check.

    `answer` is the content of a box or None (no answer, never right), `gold` a non-empty answer without box.
    A gold of one capital letter A-J is a multiple-choice answer and always decided here.
    """
    if not answer:
        return False
    if answer == gold:
        return True
    if re.fullmatch("[A-J]", gold):
        return _choice_letter(answer) == gold
    if len(answer) > _MAX_SYMBOLIC_LENGTH:
        return False
    answer, gold = _normalise(answer), _normalise(gold)
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    return None


def is_refused(text: str) -> bool:
    """Whether `text` may not reach the symbolic check: too long, a tower of powers, a factorial, or code."""
    return len(text) > _MAX_SYMBOLIC_LENGTH or _REFUSED.search(text) is not None


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes a group whose content begins at `start`; None if it stays open."""
    depth = 1
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def _unwrap(text: str) -> str:
    r"""`text` without `$` around it and without one `\text{}` or `\textbf{}` that encloses all of it."""
    text = text.strip().strip("$").strip()
    macro = _TEXT_MACRO.fullmatch(text)
    return macro.group(1).strip() if macro else text


def _normalise(text: str) -> str:
    return _IDLE_SPACE.sub("", _unwrap(text)).lower()


def _choice_letter(answer: str) -> str | None:
    r"""The letter of `A`, `(A)`, `A.`, `A:`, `A. text`, `A: text`, also in lower case or inside `\text{}`."""
    choice = _CHOICE.fullmatch(_unwrap(answer).lower())
    return (choice.group(1) or choice.group(2)).upper() if choice else None
