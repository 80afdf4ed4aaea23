import io
from collections.abc import Callable
from typing import Any

import datasets
import PIL.Image
import pytest

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bars(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """Bytes of a small image of one grey level, by which tests distinguish images."""

    def encode(level: int = 0) -> bytes:
        file = io.BytesIO()
        PIL.Image.new("L", (4, 4), level).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[Rows], datasets.Dataset]:
    """A dataset with the hub schema (images as the Image feature) from rows that hold bytes."""

    def make(rows: Rows) -> datasets.Dataset:
        features = datasets.Features(
            images=datasets.List(datasets.Image()), problem=datasets.Value("string"), answer=datasets.Value("string")
        )
        return datasets.Dataset.from_list(rows, features=features)

    return make
