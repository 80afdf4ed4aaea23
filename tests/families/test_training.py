"""Every family, loaded by path and trained by the code of `vgpo train`, does what the support table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import table
from tests.families.build import FAMILIES
from tests.families.checks import CHECKS, LIMITS, NUM_PICTURES, Family

pytest_plugins = ["tests.families.fixtures"]

# Families that differ in kind: rotary positions of images, a state from token to token, tiles, and image tokens
# that see each other in both directions. The others are checked by `make test-all`.
SAMPLE = ("qwen2_5_vl", "qwen3_5", "llava_next", "gemma3")
TWO_PROCESSES = "two processes, one without images"
SMOKE = {(name, "two steps") for name in SAMPLE} | {("qwen2_5_vl", "LoRA"), ("qwen2_5_vl", "resume")}


def case(family: str, check: str) -> Any:
    """A family and a check, in the lane where the two belong."""
    lane = "slow" if family not in SAMPLE else "process" if check == TWO_PROCESSES else "train"
    marks = [getattr(pytest.mark, lane), *([pytest.mark.smoke] if (family, check) in SMOKE else [])]
    return pytest.param(family, check, marks=marks, id=f"{family}-{check}")


@pytest.fixture(scope="module")
def make_family(
    family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Family]:
    out = tmp_path_factory.mktemp("runs")
    return lambda name: Family(name, family_folder(name).parent, out)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, make_family: Callable[[str], Family]) -> Family:
    return make_family(request.param)


@pytest.mark.parametrize(
    ("family", "check"), [case(family, check) for family in FAMILIES for check in CHECKS], indirect=["family"]
)
def test_family(family: Family, check: str) -> None:
    table.passes(family, check)


def test_the_committed_table_is_what_the_checks_find() -> None:
    # Each check fails where it does not find what LIMITS says.
    found = {(family, check): (family, check) not in LIMITS for family in FAMILIES for check in CHECKS}
    written = "\n".join(table.table_lines(found)).strip().splitlines()
    assert table.committed_lines(table.PAGE.read_text(encoding="utf-8"), table.MATRIX) == written, "make families"


@pytest.mark.train
def test_llava_onevision_is_told_the_pictures_of_each_prompt(make_family: Callable[[str], Family]) -> None:
    """By their number it knows whether an image is one of several, and so a single tile."""
    [batch, *_] = make_family("llava_onevision").plain.batches
    for prompt in batch["prompts"]:
        numbers = prompt.media.get("batch_num_images", torch.tensor([], dtype=torch.long)).tolist()
        assert numbers == [prompt.num_images] * (prompt.num_images > 0)
    assert len(batch["prompts"]) == 2 * len(NUM_PICTURES)
