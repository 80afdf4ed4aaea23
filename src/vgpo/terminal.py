"""Terminal output of the commands."""

import codecs
import errno
import io
import os
import select
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Column

# For characters that an encoding may lack, one each so that columns stay; of braille, whether there is a dot.
STAND_INS = dict(zip("·…─█░▣✓✗↵▁▂▃▄▅▆▇", "-~-#.#+x|_..::==", strict=True))
STAND_INS |= {chr(0x2800 + dots): "*" if dots else " " for dots in range(256)}


FILE_WIDTH = 400  # columns; a table of a study takes about 200


class KeptOutput(io.FileIO):
    """The descriptor of a standard stream, which takes every write: what cannot be written is lost without an error.

    Attributes:
        failure: the first error of a write; None while everything could be written.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # another process has made the descriptor non-blocking
                select.select([], [self], [])
        except OSError as error:
            self.failure = self.failure or error
            return size
        return written


class KeptText(io.TextIOWrapper):
    """Text over a `KeptOutput`. It stays open, so that whoever closes it does not end those who print later."""

    def close(self) -> None:
        self.flush()


def table_console() -> Console:
    """A console for wide tables. A file or a pipe has no width, so that its tables are not cut at 80 columns."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def keep_printing() -> KeptOutput | None:
    """Let no output that cannot be written (a full disk, a closed pipe, a lost terminal) end or change this process.

    A standard descriptor that is closed leads to the null device from now on: else the next file that is opened would
    take its number, and what is printed. `sys.stdout` and `sys.stderr` are replaced.

    Returns:
        What stands below `sys.stdout`; None where that is not the stream that the interpreter has opened.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    _keep("stderr", 2, is_closed=2 in closed)
    kept = _keep("stdout", 1, is_closed=1 in closed)
    take_any_text(sys.stdout)
    return kept


def _keep(name: str, number: int, *, is_closed: bool) -> KeptOutput | None:
    before = getattr(sys, name)
    if before is not getattr(sys, f"__{name}__"):
        return None  # a test, or a notebook, has put its own there
    kept = KeptOutput(number, "w", closefd=False)
    kept.name = f"<{name}>"  # as the interpreter calls it
    if is_closed:
        kept.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
    stream = _text_over(kept, before)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)
    return kept


def output_is_lost() -> bool:
    """Whether something that was printed could not be written."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, KeptOutput) and raw.failure is not None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _text_over(kept: KeptOutput, before: TextIO | None) -> KeptText:
    """A stream with the encoding and the buffering of the one before; None stands for one that was closed."""
    if not isinstance(before, io.TextIOWrapper):
        return KeptText(io.BufferedWriter(kept), errors="backslashreplace", line_buffering=True)
    before.flush()
    return KeptText(
        kept if before.write_through else io.BufferedWriter(kept),  # as `python -u` does
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


def message_of(error: BaseException) -> str:
    """The text of an error, also if its own `str()` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # an error has to be reported whatever its text does
        return "".join(traceback.format_exception_only(error)).strip()


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


def draws_bars(console: Console) -> bool:
    """Whether a progress bar can be redrawn: on a terminal, or in a notebook. Elsewhere each frame would stay."""
    return console.is_interactive or console.is_jupyter


def from_here(path: Path) -> Path:
    """A path as people write it: from the working directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def right(title: str) -> Column:
    """A column of numbers."""
    return Column(title, justify="right")
