"""Images are decoded when their row is read, one row at a time, and never all held."""

import io
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageFile
import psutil
import pytest

from vgpo.data import check_dataset, load_dataset, to_prompts
from vgpo.data.images import image_size

NUM_PICTURES = 300
SIDE = 512
DECODED = NUM_PICTURES * SIDE * SIDE * 3  # bytes, if all were held: 236 MB


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of JPEGs."""
    file = io.BytesIO()
    PIL.Image.effect_noise((SIDE, SIDE), 20).convert("RGB").save(file, "JPEG", quality=30)
    rows = {
        "images": [[{"bytes": file.getvalue(), "path": None}]] * NUM_PICTURES,
        "problem": ["<image>How many?"] * NUM_PICTURES,
        "answer": ["7"] * NUM_PICTURES,
    }
    features = datasets.Features(
        images=datasets.List(datasets.Image()), problem=datasets.Value("string"), answer=datasets.Value("string")
    )
    path = tmp_path_factory.mktemp("photographs") / "train.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_pictures_are_decoded_when_their_row_is_read(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    load = PIL.ImageFile.ImageFile.load

    def counted(image: PIL.ImageFile.ImageFile) -> object:
        decoded.append(image)
        return load(image)

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", counted)
    dataset = load_dataset(str(photographs))
    rows = to_prompts(dataset)
    assert [row["images"] for row in to_prompts(dataset, "plain", image_size)] == [[(SIDE, SIDE)]] * NUM_PICTURES
    assert len(decoded) == 0
    assert rows[3]["images"][0].size == (SIDE, SIDE)
    assert len({id(image) for image in decoded}) == 1


def test_memory_does_not_grow_with_the_set(photographs: Path) -> None:
    process = psutil.Process()
    dataset = load_dataset(str(photographs))
    check_dataset(dataset.select(range(20)))
    rows = to_prompts(dataset)
    rows[0]
    before = peak = process.memory_info().rss
    check_dataset(dataset)
    for row in rows:
        assert len(row["images"]) == 1
        peak = max(peak, process.memory_info().rss)
    assert peak - before < DECODED / 4
