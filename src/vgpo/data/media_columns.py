"""Test whether a dataset contains images, without decoding any."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Image, IterableDataset


def has_media_column(dataset: Any) -> bool:
    """Whether a dataset contains any image: a column of that name with a value.

    A column that is created on access (by a transform) or streamed counts as one that contains images, and so do
    messages with a field for images.
    """
    if isinstance(dataset, IterableDataset) or dataset.format["type"] == "custom":
        return True
    features = dict(dataset.features)
    columns = [dataset.data.column(name) for name in ("images", "image") if features.pop(name, None) is not None]
    return any(map(_has_value, columns)) or any(map(_has_place, features.values()))


def stores_images(dataset: Any) -> bool:
    """Whether images are stored in a dataset; for streamed or transformed columns this is not known in advance."""
    return not isinstance(dataset, IterableDataset) and has_media_column(dataset.with_format(None))


def _has_place(feature: Any) -> bool:
    """Whether values of a feature may contain an image, such as the content of a message."""
    if isinstance(feature, dict):
        return "image" in feature or any(map(_has_place, feature.values()))
    return isinstance(feature, Image) or ("feature" in vars(feature) and _has_place(feature.feature))


def _has_value(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return (pc.max(pc.list_value_length(column)).as_py() or 0) > 0
    return column.null_count < len(column)
