"""Fields of a processor with a value per token, and ids that no policy may generate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vgpo.focus import banned_token_ids, visual_token_ids
from vgpo.policy.prompts import (
    EncodedPrompt,
    as_tensor,
    encoded_prompt,
    joined_media,
    response_type,
    token_types,
)

CPU = torch.device("cpu")


def test_a_field_with_a_value_per_token_and_no_rule_is_named() -> None:
    fields = {
        "input_ids": [[5, 6, 7]],
        "cross_attention_mask": torch.ones(1, 3, 2, 4),
        "pixel_values": torch.ones(1, 4),
    }
    with pytest.raises(ValueError, match=r"'cross_attention_mask' of shape \(1, 3, 2, 4\), a value for each of the 3"):
        encoded_prompt([5, 6, 7], 1, fields, CPU)


def test_targets_of_supervised_training_are_left_out() -> None:
    ids = [[5, 6, 7]]
    fields = {"input_ids": ids, "labels": ids, "mm_token_type_ids": [[0, 1, 0]], "image_sizes": [[28, 28]]}
    prompt = encoded_prompt(ids[0], 1, fields, CPU)
    assert prompt.token_types == {"mm_token_type_ids": [0, 1, 0]}
    assert list(prompt.media) == ["image_sizes"]


@pytest.mark.parametrize(
    ("model_type", "name", "value"),
    [("gemma3", "token_type_ids", 0), ("paligemma", "token_type_ids", 1), ("paligemma", "mm_token_type_ids", 0)],
)
def test_responses_have_the_type_of_the_family(model_type: str, name: str, value: int) -> None:
    assert response_type(model_type, name) == value
    prompt = EncodedPrompt([5, 6], 1, {}, {name: [0, 1]})
    visual = torch.tensor([[False, False, False, True, False]])  # P = 3, an image in the response
    found = token_types([prompt], visual, 3, model_type)
    assert found[name].tolist() == [[0, 0, 1, 1, value]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image_token_id": 5, "image_end_token_id": 6, "eos_token_id": 7, "pad_token_id": 8}, [5]),
        ({"audio_start_token_id": 9, "audio_token_id": 10, "audio_end_token_id": 11, "user_token_id": 12}, [9, 10]),
        ({"boi_token_index": 3, "eoi_token_index": 4, "boa_token_id": 5, "eoa_token_id": 6}, [3, 5]),
        ({"visual_indicator_token_ids": [4, 2], "vision_start_token_id": 1, "image_seq_length": 7}, [1, 2, 4]),
        ({"image_token_id": None, "bos_token_id": 1}, []),
    ],
)
def test_tokens_of_every_medium_are_banned(fields: dict[str, Any], expected: list[int]) -> None:
    assert banned_token_ids(SimpleNamespace(to_dict=lambda: fields, attribute_map={})) == expected


def test_lists_of_tensors_become_one() -> None:
    images = [torch.ones(3, 2, 2, dtype=torch.bfloat16)] * 2
    assert as_tensor(images).shape == (2, 3, 2, 2)
    assert as_tensor([torch.ones(4, 3), torch.ones(1, 3)]).shape == (5, 3)
    assert as_tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


def test_a_token_that_has_an_alias_is_banned_by_it() -> None:
    config = SimpleNamespace(
        to_dict=lambda: {"image_patch": 5}, attribute_map={"image_token_id": "image_patch"}, image_token_id=5
    )
    assert banned_token_ids(config) == visual_token_ids(config) == [5]


def with_media(**media: torch.Tensor) -> EncodedPrompt:
    return EncodedPrompt([1], 1, media, {})


def test_patches_that_stand_in_one_row_follow_one_another_in_it() -> None:
    one, two = torch.rand(1, 3, 2, 4), torch.rand(1, 3, 2, 8)
    sizes = [torch.tensor([[1, 2]]), torch.tensor([[1, 2], [2, 1]])]
    first = with_media(pixel_values=one, target_sizes=sizes[0])
    joined = joined_media([first, with_media(pixel_values=two, target_sizes=sizes[1]), with_media()])
    assert torch.equal(joined["pixel_values"], torch.cat([one, two], dim=-1))
    assert joined["target_sizes"].tolist() == [[1, 2], [1, 2], [2, 1]]


def test_indices_into_patches_count_those_of_earlier_prompts() -> None:
    prompts = [
        with_media(pixel_values=torch.rand(2, 4, 6), image_token_pooling=torch.tensor([[0, -1], [7, 3]])),
        with_media(pixel_values=torch.rand(1, 4, 6), image_token_pooling=torch.tensor([[3, -1]])),
        with_media(pixel_values=torch.rand(1, 4, 6), image_token_pooling=torch.tensor([[0, 1]])),
    ]
    assert joined_media(prompts)["image_token_pooling"].tolist() == [[0, -1], [7, 3], [11, -1], [12, 13]]
