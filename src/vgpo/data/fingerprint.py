"""A fingerprint of everything in a dataset that a model, a reward or an evaluation can see."""

import base64
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets

from vgpo.data.errors import DataError
from vgpo.data.files import check_regular, expanded, status_of
from vgpo.data.progress import with_bar
from vgpo.data.schema import IMAGES, as_list

_ROWS_PER_BATCH = 64  # rows whose images are in memory at once
_THREADS = 4  # reading and hashing release the interpreter's lock


def fingerprint(dataset: datasets.Dataset) -> str:
    """SHA-256 (hex) over all columns of all rows in order, and over the stored bytes of their images.

    Only the content of an image counts, not where it is stored.

    Args:
        dataset: from `load_dataset` or `to_prompts`.

    Raises:
        DataError: An image is not a regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    texts = sorted(name for name in dataset.column_names if name != IMAGES)
    batches = with_bar(
        dataset.with_format("arrow").iter(_ROWS_PER_BATCH),
        "Hashing the dataset",
        rows=len(dataset),
        total=-(-len(dataset) // _ROWS_PER_BATCH),
    )
    with ThreadPoolExecutor(_THREADS, "vgpo-fingerprint") as threads:
        for batch in batches:
            described: dict[str, Any] = {name: batch[name].to_pylist() for name in texts}
            if IMAGES in batch.column_names:
                cells = [as_list(cell) for cell in batch[IMAGES].to_pylist()]
                described[IMAGES] = [len(cell) for cell in cells], list(threads.map(_digest, _flat(cells)))
            digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    status = status_of(path)
    if status is None:
        raise DataError(f"there is no image file {path}; correct the path or drop the row")
    check_regular(path, status)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct its permissions") from error


def _flat(cells: Iterable[list[Any]]) -> list[Any]:
    return [image for cell in cells for image in cell]


def _digest(image: Any) -> str | None:
    """Digest of an image as Arrow stores it: bytes, a path, a data URI, or a struct of bytes and path."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if image is None:
        return None
    if isinstance(image, str) and not image.startswith("data:"):
        return _digest_of_file(expanded(image))
    encoded = base64.b64decode(image.partition(",")[2]) if isinstance(image, str) else image
    return hashlib.sha256(encoded).hexdigest()
