"""A blank picture keeps processes together, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tests.families.build import ALL_FAMILIES, FAMILIES
from tests.families.mixed_worker import blank_of, load, score, score_family
from tests.families.outcomes import IMAGES_REQUIRED, NOT_RUN_BY_BLANK, RED
from tests.processes import NUM_PROCESSES, run_in_processes

pytest_plugins = ["tests.families.fixtures"]


MIXED = [name for name in ALL_FAMILIES if name not in (*RED, *IMAGES_REQUIRED, *NOT_RUN_BY_BLANK)]


def case(name: str) -> Any:
    return pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow)


@pytest.mark.parametrize(
    "family", [case(name) for name in ALL_FAMILIES if name not in (*RED, *IMAGES_REQUIRED, *NOT_RUN_BY_BLANK)]
)
def test_a_blank_picture_changes_no_output_and_no_gradient(family: str, family_folder: Callable[[str], Path]) -> None:
    model, processor = load(family_folder(family))
    pictures = score(model, processor, 0, None)
    text = score(model, processor, 1, None)
    with_blank = score(model, processor, 1, blank_of(processor))
    # Every parameter that pictures go through has a gradient now, and those that had one keep it.
    assert with_blank.keys() == pictures.keys() > text.keys()
    for name, value in with_blank.items():
        assert torch.equal(value, text.get(name, torch.zeros_like(value))), name


def test_rows_with_pictures_need_no_blank_one(family_folder: Callable[[str], Path]) -> None:
    model, processor = load(family_folder("qwen2_5_vl"))
    looks = []
    model.get_encoder(modality="image").register_forward_hook(lambda *call: looks.append(call))
    score(model, processor, 0, blank_of(processor))
    assert len(looks) == 1


@pytest.mark.process
def test_without_a_blank_picture_processes_do_not_get_through(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = family_folder("qwen2_5_vl")
    # One gathers parameters of the vision tower, the other of the decoder.
    with pytest.raises((ProcessRaisedException, ProcessExitedException)):
        run_in_processes(score_family, checkpoint, tmp_path, False, seconds=3)
    assert not list(tmp_path.iterdir())
    run_in_processes(score_family, checkpoint, tmp_path, True)
    assert len(list(tmp_path.iterdir())) == NUM_PROCESSES


@pytest.mark.slow
@pytest.mark.parametrize("family", NOT_RUN_BY_BLANK)
def test_a_blank_picture_does_not_run_all_that_pictures_go_through(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    model, processor = load(family_folder(family))
    pictures, blank = score(model, processor, 0, None), score(model, processor, 1, blank_of(processor))
    assert {NOT_RUN_BY_BLANK[family] in name for name in pictures.keys() - blank.keys()} == {True}
