"""The one error of the data package, and text of data sets made safe to show."""

import unicodedata

_STEERING = ("Cc", "Cf", "Zl", "Zp")  # Unicode's categories of control and format characters, line and paragraph ends


class DataError(ValueError):
    """A data set, a row or a template that cannot be used; the message names the place and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


def visible(text: str) -> str:
    """`text` with characters that steer a terminal or reorder a line shown as [U+XXXX]; line breaks and tabs stay."""
    return "".join(
        f"[U+{ord(character):04X}]"
        if unicodedata.category(character) in _STEERING and character not in "\n\t"
        else character
        for character in text
    )
