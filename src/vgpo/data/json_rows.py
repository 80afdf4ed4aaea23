"""Rows of .jsonl and .json files, with every text as it is written there.

The JSON reader of `datasets` guesses types: it takes a text of digits for a number and a date for a time.
"""

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from vgpo.data.errors import DataError
from vgpo.data.readers import Row, StoredSet
from vgpo.data.schema import IMAGES, as_list, no_row

_ROWS_AT_ONCE = 64  # whose pictures are held while the column is written
# A row holds images of at most 256 MiB each as base64; what is longer is a list of rows without line ends.
_LONGEST_LINE = 2**30  # bytes
_LARGEST_LIST = 4 * 2**30  # bytes of a file that is read whole; its rows take several times that in memory
_NAMES = datasets.Features({IMAGES: datasets.List(datasets.Value("string"))})


def stored_json(file: Path) -> StoredSet:
    """The set in `file`, one row a line or one list of rows. The file is read again for each part of it.

    Images are paths and data URIs, in one column. DataError for the first line that is no row or names a key twice,
    or if there is none.
    """
    columns: dict[str, None] = {}
    num_rows = 0
    for row in json_rows(file):
        columns |= dict.fromkeys(row)
        num_rows += 1
    if not num_rows:
        raise no_row(file)

    def texts(names: list[str]) -> Iterator[Row]:
        return ({name: row.get(name) for name in names} for row in json_rows(file))

    def pictures(names: list[str]) -> datasets.Dataset:
        written = file.stat()  # part of the key under which the column is kept on the disk
        key = {"file": str(file.absolute()), "names": tuple(names), "written": (written.st_mtime_ns, written.st_size)}
        try:
            return datasets.Dataset.from_generator(
                _picture_names, features=_NAMES, gen_kwargs=key, writer_batch_size=_ROWS_AT_ONCE
            )
        except (datasets.exceptions.DatasetGenerationError, OSError) as error:
            reason = error.__cause__ or error
            raise DataError(f"cannot keep the names of the pictures of {file} on the disk: {reason}") from error

    return StoredSet(list(columns), num_rows, texts, pictures)


def json_rows(file: Path) -> Iterator[Row]:
    """The rows of a file of one row a line, or of one list. DataError names the line, or the row of a list."""
    with _opened(file) as lines:
        if lines.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            lines.seek(0)
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE + 1), b""), start=1):
            place = f"{file}, line {number}"
            if number == 1 and line.startswith(b"["):
                _check_list(file, os.fstat(lines.fileno()).st_size)
                yield from _listed_rows(line + lines.read(), file)
                return
            if len(line) > _LONGEST_LINE:
                raise DataError(
                    f"{place}: more than {_LONGEST_LINE:,} bytes; write one row a line, and its images to files"
                )
            if line.strip():
                yield _row(_parsed(line.strip(), place), place)


def _check_list(file: Path, size: int) -> None:
    if size > _LARGEST_LIST:
        raise DataError(
            f"{file}: one list of {size:,} bytes, which is read whole; expected at most {_LARGEST_LIST:,}. Write one "
            "row a line, which has no limit"
        )


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}; correct its permissions or the path") from error


def _listed_rows(text: bytes, file: Path) -> Iterator[Row]:
    for number, row in enumerate(_parsed(text, str(file))):
        yield _row(row, f"{file}, row {number}")


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a {type(value).__name__}, expected {{column: value}}; correct it")
    return value


def _parsed(text: bytes, place: str) -> Any:
    try:
        value = _DECODER.decode(text.decode("utf-8"))
        if rb"\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a half of a surrogate pair is no text
    except UnicodeError as error:
        raise DataError(f"{place}: no UTF-8 text ({error}); write the file again in UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{place}: brackets in brackets too deep to be read; correct it") from error
    except _TwiceError as error:
        raise DataError(f"{place}: {error}; remove one of the two values") from error
    except ValueError as error:
        raise DataError(f"{place}: no valid JSON ({error}); correct it, or write one row a line") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last value of a key without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise _TwiceError(f"the key {twice[:80]!r} is there twice")
    return found


class _TwiceError(ValueError):
    """An object with two values for one key."""


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _picture_names(file: str, names: tuple[str, ...], written: tuple[int, int]) -> Iterator[Row]:
    for row in json_rows(Path(file)):
        yield {IMAGES: [_picture_name(picture) for name in names for picture in as_list(row.get(name))]}


def _picture_name(picture: Any) -> str | None:
    """A path or a data URI; anything else as text, which the check of the set then finds to be neither."""
    if isinstance(picture, dict) and picture.get("bytes") is None and picture.get("path") is not None:
        picture = picture["path"]
    return picture if picture is None or isinstance(picture, str) else json.dumps(picture)
