"""Prompts as the processor encodes them: once each, however many rollouts they have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.data_utils import is_conversational, prepare_multimodal_messages

from vgpo.trl.batches import pad_to_widest

# Fields that mark the tokens of pictures; made anew from the ids wherever rows are padded or packed.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
PER_TOKEN = (*TOKEN_TYPES, "input_ids", "attention_mask")


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt for the model. Rollouts of one prompt hold the same object, and by that they share it.

    Args:
        token_ids: the prompt, unpadded.
        num_images: how many pictures it has.
        pictures: what the model's forward takes of them, without padding to other prompts; empty for text.
        token_types: those of the fields `TOKEN_TYPES` that the processor gives, one number per token.
    """

    token_ids: list[int]
    num_images: int
    pictures: dict[str, Tensor]
    token_types: dict[str, list[int]]


def with_pictures_in_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose pictures are in the messages of its prompt, and nowhere else."""
    images = row.get("images") or [image for image in [row.get("image")] if image is not None]
    rest = {name: value for name, value in row.items() if name not in ("images", "image")}
    if not images:
        return rest
    if not is_conversational(row):
        raise ValueError(
            f"A row has {len(images)} picture(s), but its prompt is {type(row['prompt']).__name__}, expected a list "
            "of messages: leave the chat template to the trainer."
        )
    return {**rest, "prompt": prepare_multimodal_messages(row["prompt"], images=images)}


def encoded_prompt(
    token_ids: list[int], num_images: int, fields: dict[str, Any], device: torch.device
) -> EncodedPrompt:
    """A prompt out of what a processor returns for it alone."""
    types = {name: list(fields[name][0]) for name in TOKEN_TYPES if name in fields}
    return EncodedPrompt(list(token_ids), num_images, picture_fields(fields, device), types)


def picture_fields(encoded: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The processor's output without its per-token fields, as tensors on a device."""
    fields = {name: value for name, value in encoded.items() if name not in PER_TOKEN}
    tensors = {name: value if isinstance(value, Tensor) else np.array(value) for name, value in fields.items()}
    return {name: torch.as_tensor(value).to(device) for name, value in tensors.items()}


def joined_pictures(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The picture fields of several prompts, one after the other; a field that no prompt has is left out."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.pictures)
    values = {name: [prompt.pictures[name] for prompt in prompts if name in prompt.pictures] for name in names}
    return {name: torch.cat(pad_to_widest(tensors, 0, left=False)) for name, tensors in values.items()}


def token_types(prompts: Sequence[EncodedPrompt], visual: Tensor) -> dict[str, Tensor]:
    """The token-type fields of rows whose picture tokens are `visual`, bool (n, L)."""
    return {name: visual.long() for name in prompts[0].token_types}


def generation_fields(prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """All fields but ids in the form in which TRL generates from them: token types as lists, one per prompt."""
    types = {name: [prompt.token_types[name] for prompt in prompts] for name in prompts[0].token_types}
    return {**joined_pictures(prompts), **types}
