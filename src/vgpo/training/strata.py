"""Strata of a dataset: groups of rows with the same value in a column, for stratified shapings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from vgpo.data.schema import META
from vgpo.text import did_you_mean

MAX_STRATA = 32


@dataclass(frozen=True)
class Strata:
    """The strata of a dataset.

    names: sorted values of the column, as text.
    numbers: position in `names` of each row's value, int64 (rows,).
    """

    names: tuple[str, ...]
    numbers: Tensor

    def of_rows(self, row_index: Tensor) -> Tensor:
        """Strata of rows by their numbers in the dataset: int64 (B,) -> int64 (B,), on the same device."""
        return self.numbers.to(row_index.device)[row_index]


def find_strata(dataset: Any, column: str) -> Strata:
    """The strata of a dataset by the values of a column, or of a field of its column `meta`.

    `vgpo.data` moves the columns that a data format does not know into `meta`.

    Raises:
        ValueError: the dataset is not map-style, has no such column, has a row without a value in it, or has too many
            different values.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"stratum_column={column!r} reads the strata of all rows before training, which a "
            f"{type(dataset).__name__} does not have. Use a map-style dataset, or remove stratum_column."
        )
    values = _values(dataset, column)
    if None in values:
        raise ValueError(
            f"stratum_column={column!r}: row {values.index(None)} has no value, expected one in every row. Fill it "
            "in, or name another column."
        )
    texts = [str(value) for value in values]
    names = tuple(sorted(set(texts)))
    if len(names) > MAX_STRATA:
        raise ValueError(
            f"stratum_column={column!r} has {len(names)} different values, expected at most {MAX_STRATA}, each in "
            "many rows. Name a coarser column."
        )
    number = {name: i for i, name in enumerate(names)}
    return Strata(names, torch.tensor([number[text] for text in texts], dtype=torch.int64))


def _values(dataset: Dataset, column: str) -> Sequence[Any]:
    """The values of all rows as they are stored."""
    stored = dataset.with_format(None)
    if column in stored.column_names:
        return list(stored.select_columns([column])[column])
    meta = stored.features.get(META) if META in stored.column_names else None
    fields = list(meta) if isinstance(meta, dict) else []
    if column in fields:
        return [None if row is None else row[column] for row in stored.select_columns([META])[META]]
    known = [*stored.column_names, *fields]
    raise ValueError(
        f"stratum_column={column!r} is not a column of the dataset{did_you_mean(column, known)}; its columns "
        f"are {known}."
    )
