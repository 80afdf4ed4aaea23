"""Text that others wrote (a model, a data set, a file name), made safe to show to people."""

import unicodedata

# Unicode's categories of control, format and surrogate characters, and of line and paragraph ends.
_UNSHOWABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    """`text` with every character that steers a terminal, reorders a line or cannot be encoded shown as [U+XXXX].

    Line breaks and tabs stay. Linear in `len(text)`.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNSHOWABLE:
        return character
    return f"[U+{ord(character):04X}]"
