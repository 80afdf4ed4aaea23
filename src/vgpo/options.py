"""Lettered options in the text of a question."""

import re

LETTERS = "ABCDEFGHIJKL"

_LINE = re.compile(r"^[^\S\n]*(?:[(（]([A-L])[)）]|([A-L])[^\S\n]*[.．:：、)）])", re.MULTILINE)
_INLINE = re.compile(r"(?<![\w\\])\(([A-L])\)|(?<![\w(\\])([A-L])\)")


def lettered_options(question: str) -> dict[str, str]:
    """The texts of the options of a question by their letters, from A on without a gap.

    Options are lines that begin with `A. x`, `A: x`, `A) x` or `(A) x`, or, if there are fewer than two of these,
    parts of a line that begin with `(A) x` or `A) x`. A text extends to the next letter, that of the last option to
    the end of its line. Letters without a text, such as options in an image, are left out.
    """
    for pattern in (_LINE, _INLINE):
        marks = _longest_run(list(pattern.finditer(question)))
        if len(marks) > 1:
            ends = [*(mark.start() for mark in marks[1:]), _end_of_line(question, marks[-1].end())]
            texts = [question[mark.end() : end].strip(" \t\r\n;") for mark, end in zip(marks, ends, strict=True)]
            return {letter: text for letter, text in zip(LETTERS, texts, strict=False) if text}
    return {}


def _longest_run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """The marks in the order A, B, C and so on; the last of the longest such runs. Others in between are ignored."""
    longest: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for mark in marks:
        letter = mark[1] or mark[2]
        if letter == LETTERS[len(run) : len(run) + 1]:
            run.append(mark)
        elif letter == LETTERS[0]:
            run = [mark]
        if len(run) >= len(longest):
            longest = list(run)
    return longest


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end == -1 else end
