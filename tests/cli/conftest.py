"""Recipes written on the spot, read by the real parser."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from vgpo.toy import write_datasets

MINIMAL = """
model_name_or_path: toy
train_data: data.parquet
use_cpu: true
bf16: false
gradient_checkpointing: false
"""


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(lines: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(MINIMAL + lines)
        return path

    return write


@pytest.fixture(autouse=True)
def same_environment_afterwards() -> Iterator[None]:
    # Reading a recipe with fsdp sets environment variables that a later trainer would obey.
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def toy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A small training set and a small held-out set of the embedded task, and a data set cache that is thrown away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_datasets(tmp_path / "toy", num_train=48, num_test=12, progress=False)
