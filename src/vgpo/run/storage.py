"""Files that survive a full disk and a power cut: a file appears complete or not, a line is on the disk or not.

Data is synced to disk when a function returns, so that a checkpoint is never newer than its lines.
"""

import errno
import itertools
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from vgpo.records import Record, describe_faults, describe_value

T = TypeVar("T")
R = TypeVar("R", bound=Record)
Parse = Callable[[bytes, str], T]  # takes a line and where it is, for messages

FIRST_BLOCK = 1 << 16  # bytes read in search of the last line; doubled until they hold it
RESUME = "run the same command with --resume true"  # how to resume a training run
CORRECT = "Correct what the error names,"


class RunFolderError(RuntimeError):
    """A run folder that cannot be written, read or compared; the message names the file and the fix."""


def not_plain(value: object) -> Any:
    raise TypeError(
        f"found a {type(value).__name__}, expected None, bool, str, a number, or a list or dict of these; "
        "convert it first (a tensor with .tolist())"
    )


def plain(value: object, other: Callable[[Any], Any] = not_plain) -> Any:
    """Return `value` in JSON's own types; a float that is not finite becomes None.

    Args:
        value: numbers (NumPy scalars too), strings, enums, mappings and sequences of them.
        other: converter for anything else; by default a `TypeError` that names the type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value, other)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, other) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, other) for item in value]
    return other(value)


def to_json(value: object, indent: int | None = None) -> bytes:
    """Encode as ASCII JSON, so that any text round-trips, including lone surrogates."""
    return json.dumps(plain(value), allow_nan=False, indent=indent).encode("ascii")


def write_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a complete file, or its parts in order, under another name and rename it.

    A reader sees the old file or the new one, also after a kill or a power cut. If an error ends the writing, one of
    the parts too, the unfinished file is deleted.

    Raises:
        RunFolderError: writing failed; an older file at `path` is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with reported_refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_all(partial, b"")
        for part in [data] if isinstance(data, bytes) else data:
            with reported_refusals(path):
                write_all(partial, part, append=True)
        with reported_refusals(path):
            bring_to_disk(partial)
            partial.replace(path)
            bring_to_disk(path.parent)
    except BaseException:
        if partial.exists():
            partial.unlink()
        raise


@contextmanager
def reported_refusals(path: Path) -> Iterator[None]:
    """Convert disk errors inside the block to an error about `path`."""
    try:
        yield
    except OSError as error:
        advice = "Free space on this disk, or choose a folder on another one," if is_full(error) else CORRECT
        raise RunFolderError(
            f"{path} could not be written: {error.strerror}. Nothing was written. {advice} and run again."
        ) from error


def is_full(error: OSError) -> bool:
    """Whether writing failed because the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Append one JSON line per record: all or, if writing fails, none. Returns the number of bytes.

    Raises:
        RunFolderError: writing failed; the file ends at the last complete line it had before.
    """
    return append_lines(path, b"".join(to_json(record) + b"\n" for record in records))


def append_lines(path: Path, data: bytes, *, then: str = RESUME) -> int:
    """Append complete lines: all or, if writing fails, none. Returns the number of bytes.

    Args:
        path: a JSON-lines file, existing or new.
        data: the lines.
        then: the user's next step after fixing the disk, for the message.

    Raises:
        RunFolderError: as in `append_records`.
    """
    end, last_line = last_complete_line(path)
    is_new = not path.exists()
    try:
        if not is_new:
            os.truncate(path, end)  # drops a line that a killed process left unfinished
        write_all(path, data, append=True)
        bring_to_disk(path)
        if is_new:
            bring_to_disk(path.parent)
    except OSError as error:
        if path.exists():
            os.truncate(path, end)
        advice = "Free space on this disk" if is_full(error) else CORRECT
        raise RunFolderError(
            f"{path} could not be written: {error.strerror}. {intact_until(last_line)} {advice} and {then}."
        ) from error
    return len(data)


def keep_lines(path: Path, keep: Sequence[bool]) -> None:
    """Keep the lines of a JSON-lines file for which `keep` is true, and drop an unfinished one; the file is replaced.

    Raises:
        RunFolderError: writing failed; the file is unchanged.
    """
    if not path.exists() or (all(keep) and last_complete_line(path)[0] == path.stat().st_size):
        return
    with path.open("rb") as lines:
        left = (line for line, kept in zip(lines, keep, strict=False) if kept)
        write_file(path, iter(lambda: b"".join(itertools.islice(left, 100)), b""))


def cut_file(path: Path, num_bytes: int) -> None:
    """Truncate a file to a number of bytes.

    Raises:
        RunFolderError: writing failed; the file is unchanged.
    """
    if path.exists() and path.stat().st_size > num_bytes:
        with reported_refusals(path):
            os.truncate(path, num_bytes)
            bring_to_disk(path)


def keep_valid_lines(path: Path, parse: Parse[T], keep: Callable[[T], bool]) -> None:
    """Keep the lines of a JSON-lines file that `parse` accepts and `keep` is true of; the file is replaced.

    Raises:
        RunFolderError: writing failed; the file is unchanged.
    """

    def is_kept(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and keep(parse(line, str(path)))
        except RunFolderError:
            return False

    if os.path.lexists(path):
        with reading(path) as lines:
            kept = [is_kept(line) for line in lines]
        keep_lines(path, kept)


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunFolderError: the text is not a JSON object; names `where`.
    """
    try:
        value = decode_json(text)
    except ValueError as error:
        raise RunFolderError(f"{where}: not valid JSON ({error}); restore or delete it.") from error
    return check_mapping(value, where)


def decode_json(text: bytes) -> Any:
    """As `json.loads`, three times as fast; the fast parser refuses lone surrogates, which `to_json` escapes."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def check_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RunFolderError(f"{where}: found {describe_value(value)}, expected a mapping; restore or delete it.")
    return value


def check_record(kind: type[R], value: Any, where: str) -> R:
    """`value` as a record of this kind.

    Raises:
        RunFolderError: it is invalid; names `where` and the field.
    """
    with reported_faults(where):
        return kind.model_validate(value)


@contextmanager
def reported_faults(where: str) -> Iterator[None]:
    """Convert validation errors inside the block to an error about `where`."""
    try:
        yield
    except ValidationError as error:
        raise RunFolderError(f"{where}: {describe_faults(error)}; restore or delete it.") from error


def parser_of(kind: type[R]) -> Parse[R]:
    """A parser of lines as records of this kind."""
    return lambda text, where: check_record(kind, parse_object(text, where), where)


def read_lines(path: Path, parse: Parse[T]) -> Iterator[T]:
    """Yield the lines of a JSON-lines file, parsed; a last line that was never finished is left out.

    Raises:
        RunFolderError: `parse` raises it.
    """
    if not os.path.lexists(path):
        return
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            yield parse(line, f"{path}, line {number}")


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        RunFolderError: it cannot be read, or is not a JSON object; names it.
    """
    return parse_object(read_bytes(path), str(path))


def read_record(path: Path, kind: type[R]) -> R:
    """Read a file that holds one record.

    Raises:
        RunFolderError: it cannot be read, or is not such a record; names file and field.
    """
    return check_record(kind, read_object(path), str(path))


def read_bytes(path: Path) -> bytes:
    with reading(path) as file:
        return file.read()


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
        RunFolderError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RunFolderError(f"{path} could not be read: it is not a regular file; restore it.")
        file = path.open("rb")
    except OSError as error:
        raise RunFolderError(f"{path} could not be read: {error.strerror}; restore it.") from error
    with file:
        yield file


def write_all(path: Path, data: bytes, append: bool = False) -> None:
    # Unbuffered: a failed write must not be tried again by a later flush or close.
    with path.open("ab" if append else "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]


def bring_to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_complete_line(path: Path) -> tuple[int, bytes]:
    """Return where the last complete line ends, in bytes, and that line (empty if there is none).

    Reads little more than that line, for any file size.
    """
    if not os.path.lexists(path):
        return 0, b""
    with reading(path) as file:
        size = file.seek(0, os.SEEK_END)
        length, block = 0, b""
        while length < size and block.count(b"\n") < 2:
            length = min(size, 2 * length or FIRST_BLOCK)
            file.seek(size - length)
            block = file.read(length)
    end = block.rfind(b"\n") + 1
    start = block.rfind(b"\n", 0, max(end - 1, 0)) + 1
    return size - length + end, block[start:end]


def intact_until(last_line: bytes) -> str:
    if not last_line:
        return "It contained no line before, and contains none now."
    step = parse_object(last_line, "last line").get("step")
    return "The existing lines are intact." if step is None else f"Everything up to step {step} is intact."
