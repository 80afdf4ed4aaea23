"""Unwrap reference answers of datasets: no model output ever equals the wrapping.

Linear-time string processing for any text.
"""

import re
from typing import Any

from vgpo.answers import choice_letter, extract_boxed, strip_outer_box
from vgpo.options import lettered_options

_LONGEST_SENTENCE = 300  # characters
_MOST_WORDS = 25  # of an answer; a solution has more
_TAG = re.compile(r"</[A-Za-z_]\w*>")
_SENTENCE = re.compile(
    r"(?:.*[.!?]\s+)?(?:so|thus|hence|therefore)?,?\s*(?:the )?(?:final |correct )?answer(?:\s+is|\s*[:=])"
    r"[:\s]*(\S.*)",
    re.IGNORECASE,
)


def unwrapped(reference: str) -> str:
    r"""The answer in a reference answer.

    Without a `<think>` part before it, out of the last `<answer>` tags, after `####` in its last line, out of the only
    `\boxed{}` of a solution, or after "The answer is" in its last line; else the text without blanks around it.
    """
    text = reference.strip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip() or text
    text = _between(text, "<answer>", "</answer>")
    last = text.rpartition("\n")[2]
    if "####" in last:
        text = last.rpartition("####")[2].strip() or text
    if text.count("\\boxed{") == 1 and (boxed := extract_boxed(text)):
        return boxed
    last = text.rpartition("\n")[2]
    if len(last) <= _LONGEST_SENTENCE and (sentence := _SENTENCE.fullmatch(last.strip())):
        text = sentence[1].removesuffix(".")
    return strip_outer_box(text)


def why_never_equal(reference: str) -> str | None:
    """Why no response can equal an unwrapped reference answer, or None: it is still wrapped, or a solution."""
    if tag := _TAG.search(reference):
        return f"it contains the tag {tag.group()!r}"
    if reference.count("\\boxed{"):
        return "it is a text with a box in it"
    words = len(re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", " ", reference)))
    if words > _MOST_WORDS:
        return f"it is a text of {words} words"
    return None


def num_options(problem: str, reference: Any) -> int:
    """The number of lettered options of a question, if its reference answer is the letter of one of them; else 0.

    A guess among n options is correct with probability 1 / n. The result is 0 for a reference of several letters, or
    one whose option has no text in the question.
    """
    options = lettered_options(problem)
    letter = choice_letter(unwrapped(reference)) if isinstance(reference, str) else None
    return len(options) if letter in options else 0


def _between(text: str, opening: str, closing: str) -> str:
    """What is between the last pair of tags; all of a text without one."""
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end].strip() if 0 <= start < end else text
