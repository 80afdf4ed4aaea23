"""Rows of .jsonl and .json files, with every text unchanged.

The JSON reader of `datasets` guesses types: it converts a text of digits to a number and a date to a time.
"""

import codecs
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from vgpo.data.errors import DataError
from vgpo.data.formats import Row
from vgpo.data.readers import StoredSet, stored_names
from vgpo.data.schema import ID, IMAGES, as_list, no_row

ROW_FILE = "data.json"  # one row, in a folder with its images
_IMAGE_TYPES = (".png", ".jpg", ".jpeg")
_ROWS_AT_ONCE = 64  # rows whose images are in memory while the column is written
# A row contains images of at most 256 MiB each as base64; anything longer is a list of rows without line ends.
_LONGEST_LINE = 2**30  # bytes
_LARGEST_LIST = 4 * 2**30  # bytes of a file that is read at once; its rows take several times that in memory
_NAMES = datasets.Features({IMAGES: datasets.List(datasets.Value("string"))})


def stored_json(files: Sequence[Path], columns: Mapping[str, str] | None = None) -> StoredSet:
    """The dataset in `files`, each with one row per line, one list of rows, or `{id: row}`. Read again for each part.

    Images are paths and data URIs, in one column. columns: see `vgpo.data.readers.stored_names`. DataError for the
    first line that is not a row or has a duplicate key, or if there are no rows.
    """
    found: dict[str, None] = {}
    num_rows = 0
    for row in _rows_of(files):
        found |= dict.fromkeys(row)
        num_rows += 1
    if not num_rows:
        raise no_row(files[0])
    names = stored_names(list(found), columns)

    def texts(requested: list[str]) -> Iterator[Row]:
        return ({name: row.get(names[name]) for name in requested} for row in _rows_of(files))

    def images(requested: list[str]) -> datasets.Dataset:
        # The state of the files is part of the key under which the column is cached on disk.
        states = [(status.st_mtime_ns, status.st_size) for status in (file.stat() for file in files)]
        key = {"files": [str(file.absolute()) for file in files], "names": [names[name] for name in requested]}
        try:
            return datasets.Dataset.from_generator(
                _image_names,
                features=_NAMES,
                gen_kwargs={name: tuple(value) for name, value in (key | {"written": states}).items()},
                writer_batch_size=_ROWS_AT_ONCE,
            )
        except (datasets.exceptions.DatasetGenerationError, OSError) as error:
            reason = error.__cause__ or error
            raise DataError(f"cannot cache the image names of {files[0]} on disk: {reason}") from error

    return StoredSet(list(names), num_rows, texts, images, is_json=True)


def _rows_of(files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        yield from json_rows(file)


def json_rows(file: Path) -> Iterator[Row]:
    """The rows of a file with one row per line, one list, or `{id: row}`. DataError names the line or row."""
    with _opened(file) as lines:
        if lines.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            lines.seek(0)
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE + 1), b""), start=1):
            place = f"{file}, line {number}"
            if number == 1 and _begins_a_whole(line, file):
                _check_whole(file, os.fstat(lines.fileno()).st_size)
                yield from _rows_of_whole(_parsed(line + lines.read(), str(file)), file)
                return
            if len(line) > _LONGEST_LINE:
                raise DataError(
                    f"{place}: more than {_LONGEST_LINE:,} bytes; write one row per line, and its images to files"
                )
            if line.strip():
                yield _row(_parsed(line.strip(), place), place)


def _begins_a_whole(line: bytes, file: Path) -> bool:
    """Whether the first line begins a value that fills the file: a list, or in a .json file an object of rows.

    In a file with one row it is that row, even on a single line.
    """
    if line.startswith(b"["):
        return True
    if file.suffix != ".json" or not line.startswith(b"{"):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return _is_of_rows(value) or (file.name == ROW_FILE and file.stat().st_size <= len(line) + len(codecs.BOM_UTF8))


def _is_of_rows(value: Any) -> bool:
    """Whether this is `{id: row}`: a single row contains a text, and so not only rows."""
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _rows_of_whole(value: Any, file: Path) -> Iterator[Row]:
    if isinstance(value, list):
        rows = enumerate(value)
    elif _is_of_rows(value):
        rows = enumerate({ID: name, **row} for name, row in value.items())
    elif isinstance(value, dict) and file.name == ROW_FILE:
        rows = enumerate([{IMAGES: _images_beside(file), **value}])
    elif isinstance(value, dict):
        keys = ", ".join(repr(key[:40]) for key in list(value)[:5])
        raise DataError(
            f"{file}: one object with the keys {keys}; expected a list of rows, {{id: row}}, or one row per line. "
            "Write the list itself"
        )
    else:
        raise DataError(f"{file}: a {type(value).__name__}, expected a list of rows")
    for number, row in rows:
        yield _row(row, f"{file}, row {number}")


def _check_whole(file: Path, size: int) -> None:
    if size > _LARGEST_LIST:
        raise DataError(
            f"{file}: one value of {size:,} bytes, which is read at once; expected at most {_LARGEST_LIST:,}. Write "
            "one row per line, which has no limit"
        )


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}; correct its permissions or the path") from error


def _images_beside(file: Path) -> list[str]:
    """The images in the folder of a row, as paths relative to its parent."""
    names = sorted(image.name for image in file.parent.iterdir() if image.suffix.lower() in _IMAGE_TYPES)
    return [f"{file.parent.name}/{name}" for name in names]


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a {type(value).__name__}, expected {{column: value}}; correct it")
    return value


def _parsed(text: bytes, place: str) -> Any:
    try:
        value = _DECODER.decode(text.decode("utf-8"))
        if rb"\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is not text
    except UnicodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error}); save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{place}: brackets are nested too deeply; correct it") from error
    except _TwiceError as error:
        raise DataError(f"{place}: {error}; remove one of the two values") from error
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON ({error}); correct it, or write one row per line") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys, of which Python would silently keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise _TwiceError(f"the key {twice[:80]!r} occurs twice")
    return found


class _TwiceError(ValueError):
    """An object with two values for one key."""


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _image_names(
    files: tuple[str, ...], names: tuple[str, ...], written: tuple[tuple[int, int], ...]
) -> Iterator[Row]:
    for row in _rows_of(list(map(Path, files))):
        yield {IMAGES: [_image_name(image) for name in names for image in as_list(row.get(name))]}


def _image_name(image: Any) -> str | None:
    """A path or a data URI; anything else as text, which the check of the dataset then rejects."""
    if isinstance(image, dict) and image.get("bytes") is None and image.get("path") is not None:
        image = image["path"]
    return image if image is None or isinstance(image, str) else json.dumps(image)
