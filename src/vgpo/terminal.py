"""What the commands print with."""

import codecs
import io
from typing import TextIO

from rich.console import Console
from rich.table import Column

# For characters that an encoding may lack, one each so that columns stay; of braille, whether there is a dot.
STAND_INS = dict(zip("·…─█░▣✓✗↵▁▂▃▄▅▆▇", "-~-#.#+x|_..::==", strict=True))
STAND_INS |= {chr(0x2800 + dots): "*" if dots else " " for dots in range(256)}


def take_any_text(stream: TextIO) -> None:
    """From now on `stream` takes characters that its encoding lacks, and writes others in their place."""
    if isinstance(stream, io.TextIOWrapper):
        codecs.register_error("vgpo.stand_ins", stand_ins)
        stream.reconfigure(errors="vgpo.stand_ins")


def stand_ins(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: what stands for characters that cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(STAND_INS.get(character, "?") for character in lacking), error.end


def say(console: Console, text: str) -> None:
    """Print text as it is, in lines as long as they are."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def right(title: str) -> Column:
    """A column of numbers."""
    return Column(title, justify="right")
