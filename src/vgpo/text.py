"""Make untrusted text (from a model, a dataset, a file name) safe to show, and suggest corrections."""

import difflib
import unicodedata
from collections.abc import Iterable

# Unicode's categories of control, format and surrogate characters, and of line and paragraph ends.
_UNSHOWABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    """`text` with every character that steers a terminal, reorders a line or cannot be encoded shown as [U+XXXX].

    Line breaks and tabs stay. Linear in `len(text)`.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean ...?)"` with the known name that is nearest to a wrong one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNSHOWABLE:
        return character
    return f"[U+{ord(character):04X}]"
