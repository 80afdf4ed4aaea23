"""A blank image keeps processes together, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tests.families.build import ALL_FAMILIES, FAMILIES
from tests.families.mixed_worker import blank_of, check_two_processes, load, score, score_family
from tests.families.outcomes import IMAGES_REQUIRED, NOT_RUN_BY_BLANK, RED
from tests.processes import NUM_PROCESSES, run_in_processes
from vgpo.policy.blank_media import image_features

pytest_plugins = ["tests.families.fixtures"]


MIXED = [name for name in ALL_FAMILIES if name not in (*RED, *IMAGES_REQUIRED, *NOT_RUN_BY_BLANK)]


def case(name: str) -> Any:
    return pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow)


@pytest.mark.parametrize("family", [case(name) for name in MIXED])
def test_a_blank_picture_changes_no_output_and_no_gradient(family: str, family_folder: Callable[[str], Path]) -> None:
    model, processor = load(family_folder(family))
    pictures = score(model, processor, 0, None)
    text = score(model, processor, 1, None)
    with_blank = score(model, processor, 1, blank_of(processor))
    # Every parameter that images go through has a gradient now, and those that had one keep it.
    assert with_blank.keys() == pictures.keys() > text.keys()
    for name, value in with_blank.items():
        assert torch.equal(value, text.get(name, torch.zeros_like(value))), name


class Base(nn.Module):
    """A model without its head, which names a field that the one with a head passes on."""

    def get_image_features(self, pixel_values: torch.Tensor, merge_sizes: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return pixel_values * merge_sizes


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = Base()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.base_model.get_image_features(pixel_values, **kwargs)


def test_a_blank_image_has_all_fields_that_the_model_without_a_head_names() -> None:
    fields = {"pixel_values": torch.tensor([2.0]), "merge_sizes": torch.tensor([3.0]), "num_crops": torch.tensor([1])}
    assert image_features(Head(), fields).tolist() == [6.0]
    with pytest.raises(ValueError, match=r"Linear has no get_image_features\(\)"):
        image_features(nn.Linear(1, 1), fields)


def test_rows_with_pictures_need_no_blank_one(family_folder: Callable[[str], Path]) -> None:
    model, processor = load(family_folder("qwen2_5_vl"))
    looks = []
    model.get_encoder(modality="image").register_forward_hook(lambda *call: looks.append(call))
    score(model, processor, 0, blank_of(processor))
    assert len(looks) == 1


@pytest.mark.slow
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


# One tower, two towers side by side, and patches in one row; the ten families are tried with all checks.
@pytest.mark.process
@pytest.mark.parametrize(
    "family", [name for name in ("deepseek_vl", "deepseek_vl_hybrid", "minicpmv4_6") if name in ALL_FAMILIES]
)
def test_two_processes_give_what_one_gives(family: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    check_two_processes(family_folder(family), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", NOT_RUN_BY_BLANK)
def test_a_blank_picture_does_not_run_all_that_pictures_go_through(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    model, processor = load(family_folder(family))
    pictures, blank = score(model, processor, 0, None), score(model, processor, 1, blank_of(processor))
    assert {NOT_RUN_BY_BLANK[family] in name for name in pictures.keys() - blank.keys()} == {True}
