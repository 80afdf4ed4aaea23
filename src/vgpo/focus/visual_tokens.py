"""Which tokens stand for pictures, read from the model's own config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Older families store `*_index`, newer ones `*_id`; both mean the placeholder that the vision features replace.
VISUAL_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# A generated opening mark makes position ids look for a picture that is not there.
OPENING_FIELDS = ("vision_start_token_id", "boi_token_id", "boi_token_index")


def visual_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids of the placeholder tokens whose embeddings are replaced by image or video features.

    Raises:
        ValueError: if the config names none, as for a text-only model.
    """
    ids = named_visual_token_ids(config)
    if not ids:
        raise ValueError(
            f"The config of this model (model_type {config.model_type!r}) names no image token: looked for "
            f"{', '.join(VISUAL_FIELDS)}. Visual focus needs a vision-language model; for a text-only model "
            "set shaping='none' and measure_focus=False."
        )
    return ids


def named_visual_token_ids(config: PretrainedConfig) -> list[int]:
    """As `visual_token_ids`, and empty for a text-only model."""
    return _token_ids(config, VISUAL_FIELDS)


def banned_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids that a policy must never generate: picture placeholders and the marks that open a picture.

    A sampled placeholder has no features behind it and ends a run at a random step.
    """
    return _token_ids(config, VISUAL_FIELDS + OPENING_FIELDS)


def visual_token_mask(input_ids: Tensor, token_ids: list[int]) -> Tensor:
    """True where a token of `input_ids` (B, L) is one of `token_ids`; bool (B, L)."""
    return torch.isin(input_ids, torch.tensor(token_ids, device=input_ids.device))


def _token_ids(config: PretrainedConfig, fields: tuple[str, ...]) -> list[int]:
    values = config.to_dict()
    return sorted({values[field] for field in fields if isinstance(values.get(field), int)})
