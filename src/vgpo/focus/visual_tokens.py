"""Which tokens stand for images, read from the model's own config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vgpo.media import OPENING_TOKEN_FIELDS, VISUAL_TOKEN_FIELDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def visual_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids of the placeholder tokens whose embeddings are replaced by image or video features.

    Raises:
        ValueError: if the config names none, as for a text-only model.
    """
    ids = named_visual_token_ids(config)
    if not ids:
        raise ValueError(
            f"The config of this model (model_type {config.model_type!r}) names no image token: looked for "
            f"{', '.join(VISUAL_TOKEN_FIELDS)}. Visual focus needs a vision-language model; for a text-only model "
            "set shaping='none' and measure_focus=False."
        )
    return ids


def named_visual_token_ids(config: PretrainedConfig) -> list[int]:
    """As `visual_token_ids`, and empty for a text-only model."""
    return _token_ids(config, VISUAL_TOKEN_FIELDS)


def banned_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids that a policy must never generate: image placeholders and the marks that open an image.

    A sampled placeholder has no image features and ends a run at a random step.
    """
    return _token_ids(config, VISUAL_TOKEN_FIELDS + OPENING_TOKEN_FIELDS)


def visual_token_mask(input_ids: Tensor, token_ids: list[int]) -> Tensor:
    """True where a token of `input_ids` (B, L) is one of `token_ids`; bool (B, L)."""
    return torch.isin(input_ids, torch.tensor(token_ids, device=input_ids.device))


def _token_ids(config: PretrainedConfig, fields: tuple[str, ...]) -> list[int]:
    values = config.to_dict()
    return sorted({values[field] for field in fields if isinstance(values.get(field), int)})
