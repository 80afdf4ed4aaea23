"""Write a dataset in the columns that TRL's trainers take."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from vgpo.data.images import encoded_image
from vgpo.data.prompts import to_prompts
from vgpo.data.schema import ANSWER, ID, IMAGES

_PART = {"type": datasets.Value("string"), "text": datasets.Value("string")}
_FEATURES = datasets.Features(
    {
        "prompt": datasets.List({"role": datasets.Value("string"), "content": datasets.List(_PART)}),
        IMAGES: datasets.List(datasets.Image()),
        "solution": datasets.Value("string"),
        ANSWER: datasets.Value("string"),
        ID: datasets.Value("string"),
    }
)
_ROWS_PER_GROUP = 100


def write_trl(dataset: datasets.Dataset, path: Path, template: str = "plain") -> Path:
    """Write `dataset`, from `load_dataset`, as a parquet file with TRL's columns.

    prompt: one user message with parts. images: the stored bytes, in the order of their marks; re-encoded only if
    another reader would decode something else, see `encoded_image`.
    solution: the answer in a \\boxed{}, because TRL's own rewards skip or misread a bare letter or radical. answer,
    id. Rows are read one by one, so images are never all in memory. Returns `path`.
    """
    prompts = to_prompts(dataset, template, encoded_image)

    def rows() -> Iterator[dict[str, Any]]:
        for row in prompts:
            parts = [{"type": part["type"], "text": part.get("text")} for part in row["prompt"][0]["content"]]
            yield {
                "prompt": [{"role": "user", "content": parts}],
                IMAGES: row[IMAGES],
                "solution": f"\\boxed{{{row[ANSWER]}}}",
                ANSWER: row[ANSWER],
                ID: row.get(ID),
            }

    _write(rows(), Path(path))
    return Path(path)


def _write(rows: Iterator[dict[str, Any]], path: Path) -> None:
    schema = _FEATURES.arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
