import hashlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vgpo.toy import TaskSettings, load_scans, write_datasets
from vgpo.toy.scans import SCANS

CELL = 28
IMAGES = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_datasets(tmp_path_factory.mktemp("data"), num_train=40, num_test=30, seed=3, progress=False)


def pictures(path):
    return [Image.open(io.BytesIO(row["images"][0]["bytes"])) for row in pq.read_table(path).to_pylist()]


def cells(path):
    arrays = [np.asarray(picture)[..., 0] for picture in pictures(path)]
    return {
        array[top : top + CELL, left : left + CELL].tobytes()
        for array in arrays
        for top in range(0, array.shape[0], CELL)
        for left in range(0, array.shape[1], CELL)
    }


def test_schema_is_images_problem_answer(written):
    table = pq.read_table(written[0])
    assert table.column_names == ["images", "problem", "answer"]
    assert len(table) == 40
    row = table.to_pylist()[0]
    assert [set(image) for image in row["images"]] == [{"bytes", "path"}]
    assert row["problem"].count("<image>") == 1
    assert row["answer"].isdigit()


def test_images_are_png_of_whole_cells(written):
    for picture in pictures(written[1]):
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (84, 84))


def test_every_cell_is_a_scan_of_its_own_side(written):
    for path, split in zip(written, ("train", "test"), strict=True):
        assert cells(path) <= {scan.tobytes() for scan in load_scans(split).pixels}
    assert not cells(written[0]) & cells(written[1])


def test_same_seed_same_bytes_other_seed_other_rows(written, tmp_path):
    again = write_datasets(tmp_path / "again", num_train=40, num_test=30, seed=3, progress=False)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    other = write_datasets(tmp_path / "other", num_train=40, num_test=30, seed=4, progress=False)
    assert other[0].read_bytes() != written[0].read_bytes()


def test_difficulty_dial_is_heeded(tmp_path):
    settings = TaskSettings(rows=2, columns=4, kinds=("largest",))
    train, _ = write_datasets(tmp_path, num_train=5, num_test=1, settings=settings)
    assert {picture.size for picture in pictures(train)} == {(112, 56)}
    assert set(pq.read_table(train)["problem"].to_pylist()) == {"<image>What is the largest digit in the picture?"}


def test_empty_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_test is 0; expected at least 1"):
        write_datasets(tmp_path, num_test=0)


def test_scans_are_those_of_the_published_set():
    # SHA-256 over the pixels of scikit-learn 1.9's load_digits(), as bytes, and over the labels.
    with np.load(SCANS) as file:
        assert hashlib.sha256(file["images"].tobytes()).hexdigest() == IMAGES
        assert hashlib.sha256(file["labels"].tobytes()).hexdigest() == LABELS
