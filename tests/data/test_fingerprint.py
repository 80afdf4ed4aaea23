"""The fingerprint of a set in every form in which pictures are stored."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vgpo.data import check_dataset, load_dataset, to_prompts
from vgpo.data.fingerprint import fingerprint

Cell = Callable[[bytes, str], Any]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})

FORMS: list[tuple[str, pa.DataType, Cell]] = [
    ("list of structs", pa.list_(STRUCT), lambda data, path: [{"bytes": data, "path": None}]),
    ("struct", STRUCT, lambda data, path: {"bytes": data, "path": None}),
    ("struct of bytes", pa.struct({"bytes": pa.binary()}), lambda data, path: {"bytes": data}),
    ("struct of large bytes", pa.struct({"bytes": pa.large_binary()}), lambda data, path: {"bytes": data}),
    ("struct of a path", pa.struct({"path": pa.string()}), lambda data, path: {"path": path}),
    (
        "struct of no bytes",
        pa.list_(pa.struct({"bytes": pa.null(), "path": pa.string()})),
        lambda data, path: [{"bytes": None, "path": path}],
    ),
    ("list of bytes", pa.list_(pa.binary()), lambda data, path: [data]),
    ("large list of bytes", pa.large_list(pa.large_binary()), lambda data, path: [data]),
    ("list of one bytes", pa.list_(pa.binary(), 1), lambda data, path: [data]),
    ("bytes", pa.binary(), lambda data, path: data),
    ("path", pa.string(), lambda data, path: path),
    ("list of paths", pa.list_(pa.string()), lambda data, path: [path]),
    ("data URI", pa.string(), lambda data, path: "data:image/png;base64," + base64.b64encode(data).decode()),
]


@pytest.mark.parametrize(("kind", "cell"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_every_form_has_a_fingerprint(png, tmp_path: Path, kind: pa.DataType, cell: Cell) -> None:
    prints = []
    for number, tail in enumerate((b"", b"more")):
        picture = tmp_path / f"{number}.png"
        picture.write_bytes(png(5) + tail)
        cells = pa.array([cell(picture.read_bytes(), str(picture))] * 2, kind)
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"images": cells, "problem": ["a", "b"], "answer": ["7", "8"]}), path)
        dataset = load_dataset(str(path))
        check_dataset(dataset)
        prints.append(fingerprint(to_prompts(dataset)))
        assert prints[-1] == fingerprint(to_prompts(load_dataset(str(path))))
        assert prints[-1] != fingerprint(to_prompts(dataset.select([1, 0])))
    assert prints[0] != prints[1]


GOLDEN = "569dd62e4c94e49199b1102fcd768e83eecb43c0570a763a18899f12408c60cb"


def test_it_stays_what_it_was(png) -> None:
    """Of the common form: a run that was begun earlier can be resumed."""
    rows = [{"images": [{"bytes": bytes(70), "path": "a.png"}], "problem": "a", "answer": "7", "id": "0"}]
    assert fingerprint(datasets.Dataset.from_list(rows)) == GOLDEN
