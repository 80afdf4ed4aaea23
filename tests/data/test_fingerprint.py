"""The fingerprint of a set in every form in which images are stored."""

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


def stored(folder: Path, kind: pa.DataType, cells: list[Any], **columns: list[Any]) -> datasets.Dataset:
    path = folder / "set.parquet"
    rows = {"problem": ["a", "b"], "answer": ["7", "8"], **columns}
    pq.write_table(pa.table({"images": pa.array(cells, kind), **rows}), path)
    dataset = load_dataset(str(path))
    check_dataset(dataset)
    return dataset


@pytest.mark.parametrize(("kind", "cell"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_every_form_of_an_image_counts_by_its_content(png, tmp_path: Path, kind: pa.DataType, cell: Cell) -> None:
    prints = []
    for level in (5, 6):
        image = tmp_path / "image.png"  # redrawn: same name, same number of bytes
        image.write_bytes(png(level))
        assert len(png(level)) == len(png(5))
        dataset = stored(tmp_path, kind, [cell(image.read_bytes(), str(image))] * 2)
        prints.append(fingerprint(to_prompts(dataset)))
        assert prints[-1] == fingerprint(to_prompts(load_dataset(str(tmp_path / "set.parquet"))))
        assert prints[-1] != fingerprint(to_prompts(dataset.select([1, 0])))
    assert prints[0] != prints[1]
    assert prints[0] == fingerprint(to_prompts(stored(tmp_path, pa.binary(), [png(5)] * 2)))


def test_a_moved_folder_is_the_same_set(png, tmp_path: Path) -> None:
    prints = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(png(5))
        prints.add(fingerprint(stored(tmp_path / name, pa.string(), ["image.png"] * 2)))
    assert len(prints) == 1


def test_a_path_beside_a_stored_image_is_no_part_of_the_set(png, tmp_path: Path) -> None:
    """MathVision and DynaMath have the image and, in another column, where it was."""
    prints = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "set.parquet"
        columns = {"question": ["a"], "answer": ["7"], "image": [f"images/{name}.png"], "decoded_image": [png(5)]}
        pq.write_table(pa.table(columns), path)
        dataset = load_dataset(str(path))
        assert "meta" not in dataset.column_names
        prints.add(fingerprint(dataset))
    assert len(prints) == 1


@pytest.mark.parametrize("column", ["problem", "answer", "id", "unit"])
def test_every_column_that_a_reward_can_see_counts(png, tmp_path: Path, column: str) -> None:
    prints = set()
    for value in ("1", "2"):
        columns = {"id": ["x", "y"], "unit": ["p", "q"], column: [value, "3"]}
        prints.add(fingerprint(to_prompts(stored(tmp_path, pa.binary(), [png(5)] * 2, **columns))))
    assert len(prints) == 2


def test_images_count_with_their_row(png) -> None:
    one, two = png(1), png(2)
    rows = [[[one], [two, one]], [[one, two], [one]]]
    prints = {
        fingerprint(datasets.Dataset.from_list([{"images": cell, "problem": "a", "answer": "7"} for cell in cells]))
        for cells in rows
    }
    assert len(prints) == 2


GOLDEN = "3e664276420e0bfe249be8fdfe16694c3ee9d9f47ccdcf761b1f61a549d133ab"


def test_it_stays_what_it_was() -> None:
    """Of the common form: a run that was begun earlier can be resumed."""
    rows = [{"images": [{"bytes": bytes(70), "path": "a.png"}], "problem": "a", "answer": "7", "id": "0"}]
    assert fingerprint(datasets.Dataset.from_list(rows)) == GOLDEN
