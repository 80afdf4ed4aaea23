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
    kind = pictures.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [pc.list_value_length(pictures).to_pylist(), *_known(pc.list_flatten(pictures))]
    return [[1] * len(pictures), *_known(pictures)]


def _known(pictures: pa.Array) -> list[list[object]]:
    """The sizes of stored pictures, the texts that name the others."""
    if pa.types.is_struct(pictures.type):
        names = [field.name for field in pictures.type]
        fields = [pc.struct_field(pictures, name) for name in ("bytes", "path") if name in names]
        return [known for field in fields for known in _known(field)]
    is_stored = "binary" in str(pictures.type)
    return [(pc.binary_length(pictures) if is_stored else pictures).to_pylist()]
