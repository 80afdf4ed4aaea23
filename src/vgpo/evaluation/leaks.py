"""Evaluation images that are in the training set too.

Two images are the same if their decoded RGB pixels are equal, whatever file they were stored in. That finds copies
that were renamed, embedded or encoded again without loss, for which a digest of the stored bytes differs. It does not
find a copy that was resized, cropped or compressed again with loss: a perceptual hash would, and would also call many
different diagrams alike. An image of one colour is never counted: blank ones stand in for no image.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset

from vgpo.data import decode_image, image_digest, image_size
from vgpo.data.progress import with_bar
from vgpo.data.schema import ID, IMAGES, as_list

ROWS_PER_BATCH = 64  # whose images are held in memory as they are stored
THREADS = min(4, os.cpu_count() or 1)  # which decode; each holds one image
MAX_NAMED = 5

Size = tuple[int, int]  # (height, width) of the upright image


@dataclass(frozen=True)
class Leak:
    """A question with an image that a training prompt has too.

    Attributes:
        question: Name of the question: its id, which is its number in the source where it has none of its own.
        training_row: Name of the first such row of the training set.
    """

    question: str
    training_row: str

    def __str__(self) -> str:
        return f"question {self.question[:80]!r} in training row {self.training_row[:80]!r}"


def find_leaks(training: Dataset, sets: Mapping[str, Dataset], *, progress: bool = True) -> dict[str, list[Leak]]:
    """The questions of each set whose images, or one of them, are in the training set; only sets that have some.

    Only images of a size that is also in the training set are decoded, and of that only images of a size that is also
    in one of the sets, in up to four threads; of the others the header is read.

    Args:
        training: Rows with `images`, as in `vgpo.data.load_dataset` or `vgpo.data.to_prompts`.
        sets: The same, by a name.
        progress: Show a bar on a terminal, for a set of 500 rows or more.

    Raises:
        DataError: An image cannot be read.
    """
    if not sets:
        return {}
    found: dict[str, dict[int, int]] = {name: {} for name in sets}
    with ThreadPoolExecutor(THREADS, "vgpo-leaks") as threads:
        sizes = set[Size]().union(*(image_sizes(rows, threads, progress) for rows in sets.values()))
        sizes &= image_sizes(training, threads, progress)
        questions: dict[str, set[tuple[str, int]]] = {}
        for name, rows in sets.items():
            for question, digest in digests(rows, sizes, threads, progress):
                questions.setdefault(digest, set()).add((name, question))
        for row, digest in digests(training, sizes, threads, progress):
            for name, question in questions.get(digest, ()):
                found[name].setdefault(question, row)
    training_names = row_names(training)
    return {
        name: [Leak(names[question], training_names[rows[question]]) for question in sorted(rows)]
        for name, rows in found.items()
        if rows and (names := row_names(sets[name]))
    }


def row_names(dataset: Dataset) -> list[str]:
    """The id of each row, or its number where there are no ids."""
    if ID not in dataset.column_names:
        return [str(number) for number in range(len(dataset))]
    ids = dataset.select_columns([ID]).with_format("arrow")[:][ID].to_pylist()
    return [str(number) if one is None else str(one) for number, one in enumerate(ids)]


def describe_leaks(leaks: list[Leak], num_questions: int) -> str:
    """A sentence with the count and the first of them."""
    named = "; ".join(map(str, leaks[:MAX_NAMED]))
    more = f"; and {len(leaks) - MAX_NAMED} more" if len(leaks) > MAX_NAMED else ""
    return f"{len(leaks)} of {num_questions} questions have an image of the training set: {named}{more}"


def image_sizes(dataset: Dataset, threads: ThreadPoolExecutor, progress: bool) -> set[Size]:
    """The sizes of all images, from their headers."""
    batches = image_batches(dataset, "Comparing image sizes", progress)
    return {size for batch in batches for size in threads.map(image_size, (image for _, image in batch))}


def digests(
    dataset: Dataset, sizes: set[Size], threads: ThreadPoolExecutor, progress: bool
) -> Iterator[tuple[int, str]]:
    """(row, digest) of the images of these sizes."""
    for batch in image_batches(dataset, "Comparing images", progress):
        found = threads.map(partial(digest_of, sizes), (image for _, image in batch))
        yield from ((row, digest) for (row, _), digest in zip(batch, found, strict=True) if digest is not None)


def digest_of(sizes: set[Size], stored: Any) -> str | None:
    """The digest of an image; None if it has another size or a single colour."""
    if image_size(stored) not in sizes:
        return None
    image = decode_image(stored)
    return image_digest(image) if image.getcolors(maxcolors=1) is None else None


def image_batches(dataset: Dataset, title: str, progress: bool) -> Iterator[list[tuple[int, Any]]]:
    """(row, image as it is stored), in batches."""
    if IMAGES not in dataset.column_names:
        return
    batches = with_bar(
        dataset.select_columns([IMAGES]).with_format("arrow").iter(ROWS_PER_BATCH),
        title,
        rows=len(dataset),
        total=-(-len(dataset) // ROWS_PER_BATCH),
        shown=progress,
    )
    for number, batch in enumerate(batches):
        cells = enumerate(batch[IMAGES].to_pylist(), start=number * ROWS_PER_BATCH)
        yield [(row, image) for row, cell in cells for image in as_list(cell)]
