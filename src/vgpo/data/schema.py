"""The schema of a data set, and the check that every row keeps it."""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from vgpo.data.errors import DataError
from vgpo.data.images import verify_image

IMAGES, PROBLEM, ANSWER = "images", "problem", "answer"
IMAGE_MARK = re.compile(r"<image(?:[ _](\d+))?>")  # <image>, <image 1>, <image_1>

_MAX_FAULTS = 10
_ROWS_PER_BATCH = 64  # pictures of one batch are held as bytes at once
_LONG_DATASET = 500  # rows from which a progress bar is shown


def check_dataset(
    dataset: datasets.Dataset,
    *,
    forbidden: Sequence[str] = (),
    max_pictures: int | None = None,
    progress: bool = True,
) -> None:
    """Raise one DataError that lists the first ten faults of `dataset`, each with its row, field and fix.

    A fault is an empty problem or answer, a count of `<image>` marks that is not the count of pictures (no mark
    at all is fine: the pictures then come first), a text of `forbidden` in a problem, a picture that does not open
    or is cut short, or no picture in the whole set. A missing column is an error of its own.
    forbidden: what stands for a picture in the model's prompts, such as `<|image_pad|>`; `<image>` stays allowed.
    Pictures are opened, and decoded only where nothing cheaper tells that they are whole (a sound JPEG or PNG is
    not): all of them, or the first `max_pictures`.
    Rows are counted from 0. progress: show a bar on a terminal, for 500 rows or more.
    """
    check_columns(dataset)
    if IMAGES not in dataset.column_names:
        raise _missing_column(IMAGES, dataset.column_names)
    if len(dataset) == 0:
        raise DataError("the data set has no row; expected at least one. Check the file, the split and any filter")
    faults = list(itertools.islice(_faults(dataset, forbidden, max_pictures, progress), _MAX_FAULTS + 1))
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:_MAX_FAULTS])
        more = f"\n  and more; these are the first {_MAX_FAULTS}" if len(faults) > _MAX_FAULTS else ""
        raise DataError(f"the data set of {count(len(dataset), 'row')} cannot be used:\n{shown}{more}")


def check_columns(dataset: datasets.Dataset) -> None:
    """Raise DataError unless the text columns exist and have a usable type. `images` may be absent."""
    schema = dataset.features.arrow_schema
    for name in (PROBLEM, ANSWER):
        if name not in schema.names:
            raise _missing_column(name, schema.names)
    if not is_text(schema.field(PROBLEM).type):
        raise DataError(f"column {PROBLEM!r} is {schema.field(PROBLEM).type}; expected string. Write it as text")
    answer_type = schema.field(ANSWER).type
    if not (is_text(answer_type) or pa.types.is_integer(answer_type)):
        raise DataError(f"column {ANSWER!r} is {answer_type}; expected string or integer. Write it as text")


def as_list(images: Any) -> list[Any]:
    """The pictures of one row, whose cell may hold a list, a single picture, or nothing."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def count(number: int, noun: str) -> str:
    """`number` and `noun`, in the plural unless there is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _missing_column(name: str, found: list[str]) -> DataError:
    close = difflib.get_close_matches(name, found, n=1)
    fix = f"Did you mean {close[0]!r}? Rename it to {name!r}" if close else "Rename or add it"
    return DataError(f"the data set has no column {name!r}; its columns are {found}. {fix} (dataset.rename_column)")


def _faults(
    dataset: datasets.Dataset, forbidden: Sequence[str], max_pictures: int | None, progress: bool
) -> Iterator[str]:
    batches = dataset.select_columns([IMAGES, PROBLEM, ANSWER]).with_format("arrow").iter(_ROWS_PER_BATCH)
    num_pictures = 0
    for row, (images, problem, answer) in enumerate(_rows(batches, len(dataset), progress)):
        for fault in _problem_faults(problem or "", len(images), forbidden):
            yield f"row {row}, field {PROBLEM!r}: {fault}"
        if answer is None or not str(answer).strip():
            yield f"row {row}, field {ANSWER!r}: empty; expected a checkable answer. Fill it or drop the row"
        num_to_open = len(images) if max_pictures is None else max(0, max_pictures - num_pictures)
        for number, image in enumerate(images[:num_to_open]):
            if image_fault := _image_fault(image):
                yield f"row {row}, field {IMAGES!r}, picture {number}: {image_fault}"
        num_pictures += len(images)
    if num_pictures == 0:
        yield (
            f"field {IMAGES!r}: no row of the whole set has a picture, and a visual method needs pictures; the "
            f"columns found are {dataset.column_names}. Put the pictures in {IMAGES!r}"
        )


def _rows(batches: Iterator[pa.Table], num_rows: int, progress: bool) -> Iterator[tuple[list[Any], Any, Any]]:
    """(images, problem, answer) of each row, pictures undecoded."""
    console = Console(stderr=True)
    bar = track(
        batches,
        "Checking the data set",
        total=-(-num_rows // _ROWS_PER_BATCH),
        disable=not (progress and console.is_terminal and num_rows >= _LONG_DATASET),
        console=console,
        transient=True,
    )
    for batch in bar:
        images, problems, answers = (batch[name].to_pylist() for name in (IMAGES, PROBLEM, ANSWER))
        yield from zip(map(as_list, images), problems, answers, strict=True)


def _problem_faults(problem: str, num_images: int, forbidden: Sequence[str]) -> Iterator[str]:
    if not problem.strip():
        yield "empty; expected the question. Fill it or drop the row"
    num_marks = len(IMAGE_MARK.findall(problem))
    if num_marks not in (0, num_images):
        yield (
            f"{count(num_marks, '<image> mark')} but {num_images} in field {IMAGES!r}; expected equal counts, or no "
            "mark to put the pictures first. Correct the marks or the pictures, or drop the row"
        )
    unmarked = IMAGE_MARK.sub(" ", problem)  # a mark becomes a picture, even where a model's own token is <image>
    for text in forbidden:
        if text in unmarked:
            yield (
                f"contains {text!r}, which stands for a picture in this model's prompts; write <image> where a "
                "picture goes, or remove it"
            )


def _image_fault(image: Any) -> str | None:
    try:
        verify_image(image)
    except DataError as error:
        return str(error)
    return None
