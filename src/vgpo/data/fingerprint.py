"""A fingerprint of a data set: what of it would make another run of the same recipe."""

import hashlib
import json

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from vgpo.data.schema import ANSWER, ID, IMAGES, PROBLEM

_ROWS_PER_BATCH = 256


def fingerprint(dataset: datasets.Dataset) -> str:
    """SHA-256 (hex) over the texts of all rows in their order, and the sizes or paths of their pictures.

    Pictures are not read: one that is drawn anew into as many bytes is not noticed.
    dataset: of `load_dataset` or `to_prompts`.
    """
    digest = hashlib.sha256()
    texts = [name for name in (ID, PROBLEM, ANSWER) if name in dataset.column_names]
    pictures = [IMAGES] if IMAGES in dataset.column_names else []
    batches = dataset.with_format("arrow", columns=[*texts, *pictures]).iter(_ROWS_PER_BATCH)
    for batch in batches:
        described = {name: batch[name].to_pylist() for name in texts}
        described |= {name: _described(batch[name].combine_chunks()) for name in pictures}
        digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()


def _described(pictures: pa.Array) -> list[list[object]]:
    """Number of pictures a row, and what is known of each of them without reading it."""
    if pa.types.is_struct(pictures.type):  # one picture a row
        counts, flat = [1] * len(pictures), pictures
    else:
        counts, flat = pc.list_value_length(pictures).to_pylist(), pc.list_flatten(pictures)
    if not pa.types.is_struct(flat.type):
        return [counts, flat.to_pylist()]
    sizes, paths = pc.binary_length(pc.struct_field(flat, "bytes")), pc.struct_field(flat, "path")
    return [counts, sizes.to_pylist(), paths.to_pylist()]
