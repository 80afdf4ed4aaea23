"""Recipes and datasets written on the spot, read by the real parsers."""

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image, ImageDraw

from tests.cli.resuming import begin, folder, start, stopped, whole  # noqa: F401  # fixtures of several modules
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
        given = {line.partition(":")[0] for line in lines.splitlines()}
        kept = [line for line in MINIMAL.splitlines() if line.partition(":")[0] not in given]
        path.write_text("\n".join([*kept, lines]))
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
    """A small training set and a small held-out set of the toy task, and a dataset cache that is thrown away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_datasets(tmp_path / "toy", num_train=48, num_test=12, progress=False)


def drawing(seed: int) -> dict[str, Any]:
    """A triangle in an image of 80 to 200 by 60 to 120 pixels, as JPEG bytes."""
    draw = random.Random(seed)
    width, height = draw.randrange(80, 200), draw.randrange(60, 120)
    picture = Image.new("RGB", (width, height), "white")
    corners = [(draw.randrange(width), draw.randrange(height)) for _ in range(3)]
    ImageDraw.Draw(picture).polygon(corners, outline="black", width=2)
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def geometry(tmp_path: Path) -> Path:
    """Geometry3K's form: problem, answer in LaTeX or as a number, a list of one image."""
    rows = [
        {
            "images": [drawing(seed)],
            "problem": "<image>Find x." + " Round to the nearest tenth." * (seed % 3),
            "answer": ["2 \\sqrt { 221 }", "30", "7.5"][seed % 3],
        }
        for seed in range(12)
    ]
    features = datasets.Features(
        images=datasets.List(datasets.Image()), problem=datasets.Value("string"), answer=datasets.Value("string")
    )
    path = tmp_path / "geometry.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


@pytest.fixture
def vista(tmp_path: Path) -> Path:
    """MathVista's form: choices whose reference answer is their text, and open questions with unit and precision."""
    choice = {"choices": ["triangle", "square"], "answer": "square", "question_type": "multi_choice"}
    free = {"choices": None, "answer": "1.5", "question_type": "free_form", "precision": 1.0}
    rows = [
        {
            "pid": str(seed),
            "question": "What is this?" if seed % 2 else "How long?",
            "image": f"images/{seed}.jpg",
            "decoded_image": drawing(seed),
            "unit": None,
            "precision": None,
            **(choice if seed % 2 else free),
            "answer_type": "text" if seed % 2 else "float",
            "metadata": {"category": "math" if seed < 8 else "general", "grade": None},
        }
        for seed in range(10)
    ]
    path = tmp_path / "testmini.parquet"
    dataset = datasets.Dataset.from_list(rows).cast_column("decoded_image", datasets.Image())
    dataset.to_parquet(path)
    return path
