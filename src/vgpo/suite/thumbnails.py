"""Images of a benchmark's rows for a page: read again from their source, if that is still what was evaluated."""

from collections.abc import Collection, Mapping
from typing import Any

from vgpo.data import DataError, Reading, decode_image
from vgpo.data.faulty import DROP
from vgpo.data.fingerprint import fingerprint
from vgpo.data.schema import IMAGES, as_list, source_rows
from vgpo.evaluation.benchmark_rows import load_benchmark
from vgpo.evaluation.benchmarks import Benchmark
from vgpo.pages.images import image_entry
from vgpo.suite.folder import TaskRecord

MAX_SIDE = 256  # pixels
MAX_IMAGES = 4  # of a row

Image = Mapping[str, Any]  # as in `vgpo.pages.images.image_entry`


class ImagesUnavailableError(Exception):
    """Why the images of a task cannot be shown, as a sentence for the page."""


def row_images(
    benchmark: Benchmark, record: TaskRecord, limit: int | None, *, asked: Collection[int], shown: Collection[int]
) -> dict[int, list[Image | None]]:
    """The images of the rows to be shown.

    Args:
        benchmark: Of which task.
        record: Where its rows came from.
        limit: Of the evaluation.
        asked: Numbers of all rows that were asked or are oversized; their fingerprint must be the recorded one.
        shown: Numbers of the rows whose images are needed.

    Returns:
        By the number of the row, at most `MAX_IMAGES` images, None for one that cannot be read.

    Raises:
        ImagesUnavailableError: The source cannot be read, or is not what was evaluated.
    """
    try:
        reading = Reading(record.format, record.columns, DROP)
        dataset = load_benchmark(benchmark, record.source, reading=reading, limit=limit).dataset
        numbers = source_rows(dataset)
        found = [place for place, number in enumerate(numbers) if number in asked]
        is_same = fingerprint(dataset.select(found)) == record.fingerprint
    except (ValueError, OSError) as error:
        raise ImagesUnavailableError(f"{benchmark.title}: {record.source} cannot be read ({error})") from error
    if not is_same:
        raise ImagesUnavailableError(f"{benchmark.title}: {record.source} is no longer what was evaluated")
    if IMAGES not in dataset.column_names:
        return {}
    places = {number: place for place, number in enumerate(numbers) if number in shown}
    cells = dataset.select(list(places.values()))[IMAGES]
    return {number: thumbnails(cell) for number, cell in zip(places, cells, strict=True)}


def thumbnails(cell: Any) -> list[Image | None]:
    """The first images of a row, at most 256 pixels a side; None for one that cannot be read."""
    return [thumbnail(value) for value in as_list(cell)[:MAX_IMAGES]]


def thumbnail(value: Any) -> Image | None:
    try:
        return image_entry(decode_image(value), MAX_SIDE, max_png_bytes=0)
    except DataError:
        return None
