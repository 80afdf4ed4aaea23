"""Questions about images of digits as parquet files of the schema ``images``, ``problem``, ``answer``."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vgpo.data.progress import with_bar
from vgpo.toy.scans import Split, font_digits, load_scans
from vgpo.toy.task import TaskSettings, draw_question, render

NUM_ROWS: dict[Split, int] = {"train": 4096, "test": 500}

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema([("images", pa.list_(_IMAGE)), ("problem", pa.string()), ("answer", pa.string())])


def write_datasets(
    folder: Path,
    *,
    num_train: int = NUM_ROWS["train"],
    num_test: int = NUM_ROWS["test"],
    seed: int = 0,
    settings: TaskSettings | None = None,
    progress: bool = True,
) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``test.parquet``; the same arguments write the same bytes.

    Each row holds ``images`` (a list of one {bytes: PNG, path}), ``problem`` (with an ``<image>`` mark) and
    ``answer``, the schema of ViRL39K; in settings other than ``image`` also
    ``setting``. Test images are made of scans that no training image uses.

    Args:
        folder: where to write; made if absent, its files of these two names replaced.
        num_train: rows of the training file, at least 1.
        num_test: rows of the test file, at least 1.
        seed: draws the questions; train and test never share a stream.
        settings: the difficulty dial, the toy model's own by default.
        progress: show a progress bar.

    Returns:
        The paths of the two files.

    Raises:
        ValueError: a number of rows is below 1.
    """
    for name, rows in (("num_train", num_train), ("num_test", num_test)):
        if rows < 1:
            raise ValueError(f"{name} is {rows}; expected at least 1")
    settings = settings or TaskSettings()
    train = write_split(folder, "train", num_train, seed=seed, settings=settings, progress=progress)
    test = write_split(folder, "test", num_test, seed=seed, settings=settings, progress=progress)
    return train, test


def write_split(
    folder: Path, split: Split, num_rows: int, *, seed: int = 0, settings: TaskSettings, progress: bool = True
) -> Path:
    """Write one of the two files of `write_datasets`, whose arguments these are; the other one does not change it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: Iterable[dict[str, Any]] = _rows(split, num_rows, seed, settings)
    rows = with_bar(rows, f"Drawing {split} images", rows=num_rows, shown=progress)
    path = folder / f"{split}.parquet"
    schema = _SCHEMA if settings.setting == "image" else _SCHEMA.append(pa.field("setting", pa.string()))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def _rows(split: Split, num_rows: int, seed: int, settings: TaskSettings) -> Iterator[dict[str, Any]]:
    scans = load_scans(split) if settings.glyphs == "scans" else font_digits()
    rng = np.random.default_rng([seed, int(split == "test")])
    for index in range(num_rows):
        question = draw_question(rng, scans, settings)
        image = {"bytes": _png(render(question, scans)), "path": f"{split}-{index:05d}.png"}
        row = {"images": [image], "problem": question.problem, "answer": question.answer}
        yield row if settings.setting == "image" else {**row, "setting": question.setting}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
