"""Find evaluation images that are also in the training set.

Two images are the same if their decoded RGB pixels are equal. This finds copies that were renamed, embedded or
re-encoded without loss, for which a digest of the stored bytes differs. It does not find copies that were resized,
cropped or re-compressed with loss: a perceptual hash would, but it would also match many different diagrams. Images of
a single colour are ignored: they are placeholders for no image.
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

ROWS_PER_BATCH = 64  # rows whose encoded images are in memory at once
THREADS = min(4, os.cpu_count() or 1)  # decoding threads; each holds one image
MAX_NAMED = 5

Size = tuple[int, int]  # (height, width) of the upright image


@dataclass(frozen=True)
class Leak:
    """A question with an image that is also in a training prompt.

    Attributes:
        question: Name of the question: its id, or its number in the source if it has none.
        training_row: Name of the first such row of the training set.
    """

    question: str
    training_row: str

    def __str__(self) -> str:
        return f"question {self.question[:80]!r} in training row {self.training_row[:80]!r}"


def find_leaks(training: Dataset, sets: Mapping[str, Dataset], *, progress: bool = True) -> dict[str, list[Leak]]:
    """The questions of each dataset with at least one image from the training set; only datasets with such questions.

    Only images whose size occurs both in the training set and in one of the others are decoded, in up to four threads;
    of the rest only the header is read.

    Args:
        training: Rows with `images`, as in `vgpo.data.load_dataset` or `vgpo.data.to_prompts`.
        sets: Evaluation rows of the same kind, by name.
        progress: Show a bar on a terminal, for 500 rows or more.

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
    """The id of each row, or its number if there are no ids."""
    if ID not in dataset.column_names:
        return [str(number) for number in range(len(dataset))]
    ids = dataset.select_columns([ID]).with_format("arrow")[:][ID].to_pylist()
    return [str(number) if one is None else str(one) for number, one in enumerate(ids)]


def describe_leaks(leaks: list[Leak], num_questions: int) -> str:
    """A sentence with their number and the first few."""
    named = "; ".join(map(str, leaks[:MAX_NAMED]))
    more = f"; and {len(leaks) - MAX_NAMED} more" if len(leaks) > MAX_NAMED else ""
    return f"{len(leaks)} of {num_questions} questions have an image of the training set: {named}{more}"


def image_sizes(dataset: Dataset, threads: ThreadPoolExecutor, progress: bool) -> set[Size]:
    """The sizes of all images, read from their headers."""
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
    """(row, encoded image), in batches."""
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
