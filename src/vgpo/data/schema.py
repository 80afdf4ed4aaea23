"""The schema of a dataset: its columns, and the consistency of texts and images in a row."""

import re
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow as pa

from vgpo.data.errors import DataError
from vgpo.text import did_you_mean

IMAGES, PROBLEM, ANSWER, ID, META = "images", "problem", "answer", "id", "meta"
ROW = "row"  # the number of a row in its source, in a dataset with dropped rows
IMAGE_MARK = re.compile(r"<image(?:[ _]?(\d+))?>")  # <image>, <image 1>, <image_1>, <image1>

MAX_FAULTS = 10


def check_columns(dataset: datasets.Dataset, needed: Sequence[str] = (PROBLEM, ANSWER)) -> None:
    """Raise DataError unless the `needed` columns exist and those of texts have a usable type."""
    schema = dataset.features.arrow_schema
    missing = [name for name in needed if name not in schema.names]
    if {PROBLEM, ANSWER} & set(missing):
        raise missing_columns(missing, schema.names)
    if not is_text(schema.field(PROBLEM).type):
        raise DataError(f"column {PROBLEM!r} is {schema.field(PROBLEM).type}; expected string. Write it as text")
    answer_type = schema.field(ANSWER).type
    if not (is_text(answer_type) or pa.types.is_integer(answer_type)):
        raise DataError(f"column {ANSWER!r} is {answer_type}; expected string or integer. Write it as text")
    if missing:
        raise missing_columns(missing, schema.names)


def as_list(images: Any) -> list[Any]:
    """The images of one row, whose cell may be a list, a single image, or empty; an empty text is not an image."""
    if images is None:
        return []
    cell = images if isinstance(images, list | tuple) else [images]
    return [image for image in cell if not (isinstance(image, str) and image == "")]


def source_rows(dataset: datasets.Dataset) -> list[int]:
    """The number of each row in the source, also if rows were dropped."""
    return list(dataset[ROW]) if ROW in dataset.column_names else list(range(len(dataset)))


def quantity(number: int, noun: str) -> str:
    """`number` and `noun`, in the plural unless the number is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type contains strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def listed(faults: Sequence[str]) -> str:
    """The first `MAX_FAULTS` faults, one per line, and whether there are more."""
    more = [f"  and more; these are the first {MAX_FAULTS}"] if len(faults) > MAX_FAULTS else []
    return "\n".join([*(f"  {fault}" for fault in faults[:MAX_FAULTS]), *more])


def mark_fault(text: str, num_images: int) -> str | None:
    """The fault of the marks in `text`, or None: there is one mark for each image, or none at all.

    Without a mark the images come first. Numbered marks refer to the images 1 to N; a single mark may have any number.
    """
    numbers = [int(mark.group(1) or 0) for mark in IMAGE_MARK.finditer(text)]
    if len(numbers) not in (0, num_images):
        return (
            f"{quantity(len(numbers), '<image> placeholder')} but {num_images} in field {IMAGES!r}; expected equal "
            "numbers, or no placeholder to put the images first. Correct the placeholders or the images, or drop the "
            "row"
        )
    if len(numbers) > 1 and any(numbers) and sorted(numbers) != list(range(1, num_images + 1)):
        marks = ", ".join(mark.group() for mark in IMAGE_MARK.finditer(text))
        return (
            f"the placeholders are {marks}; expected each number from 1 to {num_images} once, or <image> without a "
            "number in the order of the images. Correct the placeholders, or drop the row"
        )
    return None


def no_row(source: object) -> DataError:
    """The error for a dataset without rows."""
    return DataError(f"{source} has no row; expected at least one. Check the file, the split and any filter")


def missing_columns(missing: Sequence[str], found: list[str]) -> DataError:
    """The error for missing columns, `a|b` for either, each with the nearest existing one."""
    described = []
    for name in missing:
        names = name.split("|")
        hint = next(filter(None, (did_you_mean(one, found) for one in names)), "")
        described.append(f"{' or '.join(map(repr, names))}{hint}")
    columns = ", ".join(f"{name.split('|')[0]}: NAME" for name in missing)
    them, those = ("it", "the one that holds it") if len(missing) == 1 else ("them", "those that hold them")
    return DataError(
        f"the dataset has no column {' and no column '.join(described)}; its columns are {found}. Add {them}, or "
        f"name {those}, as in columns: {{{columns}}} (in JSON as the option --columns)"
    )
