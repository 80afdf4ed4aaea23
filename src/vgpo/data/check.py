"""Check that every row of a dataset can be trained on."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets

from vgpo.data.errors import DataError
from vgpo.data.faulty import ERROR, Fault, without_faulty
from vgpo.data.images import verify_image
from vgpo.data.progress import with_bar
from vgpo.data.rendering import render, template_text
from vgpo.data.schema import (
    ANSWER,
    ID,
    IMAGE_MARK,
    IMAGES,
    PROBLEM,
    as_list,
    check_columns,
    mark_fault,
    no_row,
    source_rows,
)

MAX_TEXT = 1_000_000  # characters: longer than any model's context, such as a file put into a cell by mistake
SHORTEST_TOKEN = 3  # characters: some tokenizers pad with an ordinary character, such as "!"
_ROWS_PER_BATCH = 64  # images of one batch are held as bytes at once
_THREADS = min(4, os.cpu_count() or 1)  # decoding threads; each holds one image of at most 320 MB


def check_dataset(
    dataset: datasets.Dataset,
    *,
    template: str = "plain",
    forbidden: Sequence[str] = (),
    max_images: int | None = None,
    progress: bool = True,
    faulty_rows: str = ERROR,
) -> datasets.Dataset:
    """Return `dataset` if each of its rows can be trained on; else raise one DataError that lists the first ten
    faults.

    A fault is an empty problem or answer; a problem, answer or `id` of more than a million characters; a duplicate
    `id`; `<image>` marks that do not match the images (see `mark_fault`) or a text of `forbidden`, in a problem or in
    its rendered template; an image that does not open, is truncated or has an extreme size; or a dataset without
    images. A missing column, and a template that cannot be rendered, is an error of its own.
    template: see `to_prompts`.
    forbidden: control tokens of the model's tokenizer, such as `<|im_end|>` and `<|image_pad|>`, which it recognises
    in any text; `<image>` and tokens of fewer than 3 characters remain allowed.
    Images are decoded, in up to four threads (see `verify_image`): all of them, or the first `max_images`.
    Rows are counted from 0. progress: show a bar on a terminal, for 500 rows or more.
    faulty_rows: "drop" returns the valid rows, after a warning that counts and names the dropped ones.
    """
    faults = find_faults(dataset, template=template, forbidden=forbidden, max_images=max_images, progress=progress)
    return without_faulty(dataset, faults, faulty_rows, cannot="used")


def find_faults(
    dataset: datasets.Dataset,
    *,
    template: str = "plain",
    forbidden: Sequence[str] = (),
    max_images: int | None = None,
    progress: bool = True,
) -> Iterator[Fault]:
    """The faults of `check_dataset` in row order, found while the rows are read. Arguments: see `check_dataset`.

    Raises:
        DataError: A missing column, no row, or a template that cannot be rendered.
    """
    check_columns(dataset, (PROBLEM, ANSWER, IMAGES))
    if len(dataset) == 0:
        raise no_row("the dataset")
    return _faults(dataset, template_text(template), _pattern(forbidden), max_images, progress)


@dataclass(frozen=True)
class _Row:
    """A row to check. num_images: in its cell. image_faults: (number, fault) of the opened images."""

    number: int
    problem: str
    answer: str
    name: str | None
    num_images: int
    image_faults: list[tuple[int, str]]


def _faults(
    dataset: datasets.Dataset,
    template: str,
    forbidden: re.Pattern[str] | None,
    max_images: int | None,
    progress: bool,
) -> Iterator[Fault]:
    num_images = 0
    first_rows: dict[str, int] = {}
    for row in _rows(dataset, max_images, progress):
        for field, fault in _row_faults(row, template, forbidden, first_rows):
            yield Fault(row.number, f"field {field!r}: {fault}")
        for number, fault in row.image_faults:
            yield Fault(row.number, f"field {IMAGES!r}, image {number}: {fault}")
        num_images += row.num_images
    if num_images == 0:
        yield Fault(
            None,
            f"field {IMAGES!r}: no row of the dataset has an image, and a visual method needs images; the "
            f"columns found are {dataset.column_names}. Put the images in {IMAGES!r}",
        )


def _rows(dataset: datasets.Dataset, max_images: int | None, progress: bool) -> Iterator[_Row]:
    """The rows in order, with their images checked."""
    columns = [name for name in (IMAGES, PROBLEM, ANSWER, ID) if name in dataset.column_names]
    bar = with_bar(
        dataset.select_columns(columns).with_format("arrow").iter(_ROWS_PER_BATCH),
        "Checking the dataset",
        rows=len(dataset),
        total=-(-len(dataset) // _ROWS_PER_BATCH),
        shown=progress,
    )
    numbers, left = iter(source_rows(dataset)), max_images
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in bar:
            cells = [as_list(cell) for cell in batch[IMAGES].to_pylist()]
            problems, answers = (batch[name].to_pylist() for name in (PROBLEM, ANSWER))
            names = batch[ID].to_pylist() if ID in columns else [None] * len(cells)
            to_open = [(row, number, image) for row, cell in enumerate(cells) for number, image in enumerate(cell)]
            to_open = to_open if left is None else to_open[:left]
            left = left if left is None else left - len(to_open)
            faults: list[list[tuple[int, str]]] = [[] for _ in cells]
            found = threads.map(_image_fault, (image for _, _, image in to_open))
            for (row, number, _), fault in zip(to_open, found, strict=True):
                faults[row] += [(number, fault)] if fault else []
            for row, (problem, answer, name) in enumerate(zip(problems, answers, names, strict=True)):
                text = "" if answer is None else str(answer)
                name = None if name is None else str(name)
                yield _Row(next(numbers), problem or "", text, name, len(cells[row]), faults[row])


def _row_faults(
    row: _Row, template: str, forbidden: re.Pattern[str] | None, first_rows: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """(field, fault) for the texts of a row; first_rows: row by id so far, to which this row is added."""
    texts = {PROBLEM: row.problem, ANSWER: row.answer, ID: row.name or ""}
    for field, text in texts.items():
        if len(text) > MAX_TEXT:
            yield field, f"{len(text):,} characters, expected at most {MAX_TEXT:,}. Shorten it or drop the row"
    if len(row.problem) <= MAX_TEXT:
        for fault in _problem_faults(row.problem, template, row.num_images, forbidden):
            yield PROBLEM, fault
    if not row.answer.strip():
        yield ANSWER, "empty; expected a checkable answer. Fill it or drop the row"
    if row.name is not None and first_rows.setdefault(row.name, row.number) != row.number:
        yield ID, f"{row.name[:80]!r} is also the id of row {first_rows[row.name]}; give each row its own"


def _problem_faults(problem: str, template: str, num_images: int, forbidden: re.Pattern[str] | None) -> Iterator[str]:
    if not problem.strip():
        yield "empty; expected the question. Fill it or drop the row"
    faults = list(_text_faults(problem, num_images, forbidden))
    yield from faults
    if not faults:
        for fault in _text_faults(render(template, problem), num_images, forbidden):
            yield f"with the prompt template around it: {fault}"


def _pattern(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """One pattern for all tokens, longest first: a tokenizer may have hundreds."""
    longest_first = sorted((token for token in set(tokens) if len(token) >= SHORTEST_TOKEN), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _text_faults(text: str, num_images: int, forbidden: re.Pattern[str] | None) -> Iterator[str]:
    if fault := mark_fault(text, num_images):
        yield fault
    unmarked = IMAGE_MARK.sub(" ", text)  # a mark becomes an image, even where a model's own token is <image>
    for token in dict.fromkeys(forbidden.findall(unmarked) if forbidden else ()):
        yield (
            f"contains {token!r}, a control token of this model's tokenizer, which is read as one and not as "
            "text; remove or rewrite it, and write <image> where an image goes"
        )


def _image_fault(image: Any) -> str | None:
    try:
        verify_image(image)
    except DataError as error:
        return str(error)
    return None
