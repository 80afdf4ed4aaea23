"""Strata of a recipe: a column of a file that no data format knows, or an error that lists the columns."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vgpo.data import DataError
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.setup import Setup
from vgpo.training.strata import find_strata


def setup(tmp_path: Path, column: str) -> Setup:
    rows = [{"problem": "What is 1 + 1?", "answer": "2", "images": ["a.png"], "level": level} for level in ("b", "a")]
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i, row in enumerate(rows)))
    options = json.dumps({"stratum_column": column})
    words = ["--shaping", "adaptive", "--shaping_options", options, "--train_data", str(data), "--use_cpu", "true"]
    return Setup(load_recipe("quickstart_vgpo", [*words, "--run_dir", str(tmp_path / "run")]), tmp_path)


def test_a_column_of_the_file_reaches_the_trainer(tmp_path: Path) -> None:
    assert find_strata(setup(tmp_path, "level").prompts, "level").names == ("a", "b")


def test_an_unknown_column_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl: stratum_column='levle' is not a column.*mean 'level'.*'meta', 'level'"
    ):
        setup(tmp_path, "levle").prompts  # noqa: B018
