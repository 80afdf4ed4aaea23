"""Reference answers as data sets wrap them, and what is inside: no model output ever equals the wrapping.

String work in linear time, whatever the text.
"""

import re

from vgpo.answers import extract_boxed, strip_outer_box

_LONGEST_SENTENCE = 300  # characters
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


def _between(text: str, opening: str, closing: str) -> str:
    """What is between the last pair of tags; all of a text without one."""
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end].strip() if 0 <= start < end else text
