"""Every family, loaded by path and trained by the code of `vgpo train`, does what the support table says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families import table
from tests.families.build import FAMILIES
from tests.families.checks import CHECKS, NUM_PICTURES, Family

pytest_plugins = ["tests.families.fixtures"]

Found = dict[tuple[str, str], bool]


@pytest.fixture(scope="module")
def make_family(
    family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Family]:
    out = tmp_path_factory.mktemp("runs")
    checkpoints = {family_folder(name).parent for name in FAMILIES}
    return lambda name: Family(name, *checkpoints, out)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, make_family: Callable[[str], Family]) -> Family:
    return make_family(request.param)


@pytest.fixture(scope="module")
def found() -> Found:
    """What the checks of this run found."""
    return {}


# All families together are run by the first check that asks for two processes.
SLOW = {"two processes, one without pictures": pytest.mark.slow}


@pytest.mark.parametrize("check", [pytest.param(check, marks=SLOW.get(check, ())) for check in CHECKS])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_family(family: Family, check: str, found: Found) -> None:
    found[family.name, check] = table.passes(family, check)


def test_the_committed_table_is_what_the_checks_found(found: Found) -> None:
    if len(found) < len(FAMILIES) * len(CHECKS):
        pytest.skip("needs all checks in the same run")
    written = "\n".join(table.table_lines(found)).strip().splitlines()
    assert table.committed_lines(table.PAGE.read_text(encoding="utf-8")) == written, "python -m tests.families.table"


def test_llava_onevision_is_told_the_pictures_of_each_prompt(make_family: Callable[[str], Family]) -> None:
    """By their number it knows whether a picture is one of several, and so a single tile."""
    [batch, *_] = make_family("llava_onevision").plain.batches
    for prompt in batch["prompts"]:
        numbers = prompt.pictures.get("batch_num_images", torch.tensor([], dtype=torch.long)).tolist()
        assert numbers == [prompt.num_images] * (prompt.num_images > 0)
    assert len(batch["prompts"]) == 2 * len(NUM_PICTURES)


def test_gemma_says_that_it_shares_no_prompts(
    make_family: Callable[[str], Family], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vgpo.trl.trainer"):
        make_family("gemma3").train(max_steps=1)
    assert "share_prompt is off" in caplog.text
    assert "sliding window" in caplog.text
