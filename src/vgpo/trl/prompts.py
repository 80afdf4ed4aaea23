"""Prompts as the processor encodes them: once each, however many rollouts they have."""

from collections.abc import Hashable, Sequence
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

    def types_of(self, name: str) -> list[int]:
        """One token-type field; zeros where the processor left it out, as for text."""
        return self.token_types.get(name, [0] * len(self.token_ids))


def with_pictures_in_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose pictures are in the messages of its prompt, and nowhere else."""
    if not {"images", "image"} & row.keys():
        return row
    images = row.get("images") or [image for image in [row.get("image")] if image is not None]
    rest = {name: value for name, value in row.items() if name not in ("images", "image")}
    if is_conversational(row):
        return {**rest, "prompt": prepare_multimodal_messages(row["prompt"], images=images)}
    if images:
        raise ValueError(
            f"A row has {len(images)} picture(s), but its prompt is {type(row['prompt']).__name__}, expected a list "
            "of messages: leave the chat template to the trainer."
        )
    return rest


def prompt_key(prompt: Any) -> Hashable:
    """Equal for prompts of the same text and the very same pictures."""
    if isinstance(prompt, dict):
        return tuple((name, prompt_key(value)) for name, value in prompt.items())
    if isinstance(prompt, list):
        return tuple(map(prompt_key, prompt))
    return prompt if isinstance(prompt, str) else id(prompt)


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


def has_pictures(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether a forward pass over these prompts runs the vision tower."""
    return any(prompt.pictures for prompt in prompts)


def token_types(prompts: Sequence[EncodedPrompt], visual: Tensor, prompt_width: int) -> dict[str, Tensor]:
    """The token-type fields of padded rows: the processor's for prompts, and 1 for pictures in responses.

    Args:
        prompts: the prompt of each of B rows.
        visual: picture tokens, bool (B, P + T).
        prompt_width: P.
    """
    fields = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.token_types):
        columns = torch.zeros(len(prompts), prompt_width, dtype=torch.long)
        for column, prompt in zip(columns, prompts, strict=True):
            column[prompt_width - len(prompt.token_ids) :] = torch.tensor(prompt.types_of(name))
        fields[name] = torch.cat([columns.to(visual.device), visual[:, prompt_width:].long()], dim=1)
    return fields


def generation_fields(prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """All fields but ids in the form in which TRL generates from them: token types as lists, one per prompt."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.token_types)
    types = {name: [prompt.types_of(name) for prompt in prompts] for name in names}
    return {**joined_pictures(prompts), **types}
