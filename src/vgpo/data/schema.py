"""The schema of a data set, and the check that every row keeps it."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa

from vgpo.data.errors import DataError
from vgpo.data.images import verify_image
from vgpo.data.progress import with_bar
from vgpo.data.rendering import render, template_text
from vgpo.text import did_you_mean

IMAGES, PROBLEM, ANSWER, ID, META = "images", "problem", "answer", "id", "meta"
IMAGE_MARK = re.compile(r"<image(?:[ _]?(\d+))?>")  # <image>, <image 1>, <image_1>, <image1>

MAX_FAULTS = 10
_ROWS_PER_BATCH = 64  # pictures of one batch are held as bytes at once


def check_dataset(
    dataset: datasets.Dataset,
    *,
    template: str = "plain",
    forbidden: Sequence[str] = (),
    max_pictures: int | None = None,
    progress: bool = True,
) -> None:
    """Raise one DataError that lists the first ten faults of `dataset`, each with its row, field and fix.

    A fault is an empty problem or answer, an `id` that an earlier row has, `<image>` marks that do not fit the
    pictures (see `mark_fault`) or a text of `forbidden`, in a problem or with the template around it, a picture that
    does not open, is cut short or has an absurd size, or no picture in the whole set. A missing column, and a
    template that cannot be filled in, is an error of its own.
    template: of `to_prompts`.
    forbidden: what stands for a picture in the model's prompts, such as `<|image_pad|>`; `<image>` stays allowed.
    Pictures are opened, and decoded only where nothing cheaper tells that they are whole (a sound JPEG or PNG is
    not): all of them, or the first `max_pictures`.
    Rows are counted from 0. progress: show a bar on a terminal, for 500 rows or more.
    """
    check_columns(dataset)
    if IMAGES not in dataset.column_names:
        raise missing_column(IMAGES, dataset.column_names)
    if len(dataset) == 0:
        raise no_row("the data set")
    found = _faults(dataset, template_text(template), forbidden, max_pictures, progress)
    faults = list(itertools.islice(found, MAX_FAULTS + 1))
    if faults:
        raise DataError(f"the data set of {quantity(len(dataset), 'row')} cannot be used:\n{listed(faults)}")


def check_columns(dataset: datasets.Dataset) -> None:
    """Raise DataError unless the text columns exist and have a usable type. `images` may be absent."""
    schema = dataset.features.arrow_schema
    for name in (PROBLEM, ANSWER):
        if name not in schema.names:
            raise missing_column(name, schema.names)
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


def quantity(number: int, noun: str) -> str:
    """`number` and `noun`, in the plural unless there is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def listed(faults: Sequence[str]) -> str:
    """The first `MAX_FAULTS`, one a line, and whether there are more."""
    more = [f"  and more; these are the first {MAX_FAULTS}"] if len(faults) > MAX_FAULTS else []
    return "\n".join([*(f"  {fault}" for fault in faults[:MAX_FAULTS]), *more])


def mark_fault(text: str, num_images: int) -> str | None:
    """What is wrong with the marks of `text`, if anything: they stand for each picture once, or there is none.

    Without a mark the pictures come first. Numbered marks name the pictures 1 to N; a single mark may have any
    number.
    """
    numbers = [int(mark.group(1) or 0) for mark in IMAGE_MARK.finditer(text)]
    if len(numbers) not in (0, num_images):
        return (
            f"{quantity(len(numbers), '<image> mark')} but {num_images} in field {IMAGES!r}; expected equal counts, "
            "or no mark to put the images first. Correct the marks or the images, or drop the row"
        )
    if len(numbers) > 1 and any(numbers) and sorted(numbers) != list(range(1, num_images + 1)):
        marks = ", ".join(mark.group() for mark in IMAGE_MARK.finditer(text))
        return (
            f"the marks are {marks}; expected each number from 1 to {num_images} once, or <image> without a number "
            "in the order of the pictures. Correct the marks, or drop the row"
        )
    return None


def no_row(source: object) -> DataError:
    """The error of a set without a row."""
    return DataError(f"{source} has no row; expected at least one. Check the file, the split and any filter")


def missing_column(name: str, found: list[str]) -> DataError:
    """The error of a set without a column, with the column that may be meant."""
    return DataError(
        f"the data set has no column {name!r}{did_you_mean(name, found)}; its columns are {found}. Rename or add it "
        "(dataset.rename_column)"
    )


def _faults(
    dataset: datasets.Dataset, template: str, forbidden: Sequence[str], max_pictures: int | None, progress: bool
) -> Iterator[str]:
    num_pictures = 0
    first_rows: dict[str, int] = {}
    for row, (images, problem, answer, name) in enumerate(_rows(dataset, progress)):
        for fault in _problem_faults(problem or "", template, len(images), forbidden):
            yield f"row {row}, field {PROBLEM!r}: {fault}"
        if answer is None or not str(answer).strip():
            yield f"row {row}, field {ANSWER!r}: empty; expected a checkable answer. Fill it or drop the row"
        if name is not None and first_rows.setdefault(name, row) != row:
            yield f"row {row}, field {ID!r}: {name!r} is also the id of row {first_rows[name]}; give each row its own"
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


def _rows(dataset: datasets.Dataset, progress: bool) -> Iterator[tuple[list[Any], Any, Any, Any]]:
    """(images, problem, answer, id or None) of each row, pictures undecoded."""
    columns = [name for name in (IMAGES, PROBLEM, ANSWER, ID) if name in dataset.column_names]
    bar = with_bar(
        dataset.select_columns(columns).with_format("arrow").iter(_ROWS_PER_BATCH),
        "Checking the data set",
        rows=len(dataset),
        total=-(-len(dataset) // _ROWS_PER_BATCH),
        shown=progress,
    )
    for batch in bar:
        images, problems, answers = (batch[name].to_pylist() for name in (IMAGES, PROBLEM, ANSWER))
        names = batch[ID].to_pylist() if ID in columns else [None] * len(problems)
        yield from zip(map(as_list, images), problems, answers, names, strict=True)


def _problem_faults(problem: str, template: str, num_images: int, forbidden: Sequence[str]) -> Iterator[str]:
    if not problem.strip():
        yield "empty; expected the question. Fill it or drop the row"
    faults = list(_text_faults(problem, num_images, forbidden))
    yield from faults
    if not faults:
        for fault in _text_faults(render(template, problem), num_images, forbidden):
            yield f"with the prompt template around it: {fault}"


def _text_faults(text: str, num_images: int, forbidden: Sequence[str]) -> Iterator[str]:
    if fault := mark_fault(text, num_images):
        yield fault
    unmarked = IMAGE_MARK.sub(" ", text)  # a mark becomes a picture, even where a model's own token is <image>
    for token in forbidden:
        if token in unmarked:
            yield (
                f"contains {token!r}, which stands for a picture in this model's prompts; write <image> where a "
                "picture goes, or remove it"
            )


def _image_fault(image: Any) -> str | None:
    try:
        verify_image(image)
    except DataError as error:
        return str(error)
    return None
