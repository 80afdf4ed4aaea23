"""Image placeholder tokens, from the model's config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vgpo.media import CLOSING_WORDS, MEDIA_WORDS, TOKEN_ID_ENDINGS, VISUAL_TOKEN_FIELDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def visual_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids of the placeholder tokens whose embeddings are replaced by image or video features.

    Raises:
        ValueError: if the config names none, such as that of a text-only model.
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
    """As `visual_token_ids`, but empty for a text-only model."""
    return _token_ids(config, VISUAL_TOKEN_FIELDS)


def banned_token_ids(config: PretrainedConfig) -> list[int]:
    """Ids that a policy must never generate: placeholders of any medium, and the tokens that open one.

    A sampled placeholder has no features, and an opening token makes position ids refer to missing media: both would
    crash a run at a random step.
    """
    return _token_ids(config, [name for name in (*config.to_dict(), *config.attribute_map) if _names_medium(name)])


def _names_medium(field: str) -> bool:
    words = field.split("_")
    named = any(word.startswith(MEDIA_WORDS) for word in words)
    return named and field.endswith(TOKEN_ID_ENDINGS) and not any(word in CLOSING_WORDS for word in words)


def visual_token_mask(input_ids: Tensor, token_ids: list[int]) -> Tensor:
    """True where a token of `input_ids` (B, L) is one of `token_ids`; bool (B, L)."""
    return torch.isin(input_ids, torch.tensor(token_ids, device=input_ids.device))


def _token_ids(config: PretrainedConfig, fields: Iterable[str]) -> list[int]:
    values = config.to_dict()
    ids: set[int] = set()
    for field in fields:
        value = getattr(config, field, None) if field in config.attribute_map else values.get(field)
        ids.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return sorted(ids)
