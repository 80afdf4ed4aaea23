"""Visual tokens come from the model's own config, whatever its family."""

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig, Qwen2Config

from vgpo.focus import banned_token_ids, visual_token_ids, visual_token_mask

FAMILIES = [
    "gemma3", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl",
    "smolvlm",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_its_image_token(family):
    config = AutoConfig.for_model(family)
    ids = visual_token_ids(config)
    assert config.image_token_id in ids
    assert set(ids) <= set(banned_token_ids(config))


def test_video_and_opening_tokens():
    config = PretrainedConfig(image_token_id=5, video_token_id=6, vision_start_token_id=7)
    assert visual_token_ids(config) == [5, 6]
    assert banned_token_ids(config) == [5, 6, 7]


def test_a_text_model_is_refused_with_what_was_looked_for():
    with pytest.raises(ValueError, match=r"model_type 'qwen2'.*image_token_id.*shaping='none'"):
        visual_token_ids(Qwen2Config())


def test_mask_finds_images_and_videos_only():
    ids = torch.tensor([[1, 5, 5, 2], [6, 1, 7, 2]])
    expected = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert torch.equal(visual_token_mask(ids, [5, 6]), expected)
    assert not visual_token_mask(ids, []).any()
