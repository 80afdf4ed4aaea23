"""Prompts as the processor encodes them, once per prompt."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ProcessorMixin

from vgpo.media import (
    DROPPED_TOKEN_FIELDS,
    IMAGE_COLUMNS,
    INDICES_OF,
    PACKED_BY,
    RESPONSE_TYPES,
    TOKEN_TYPE_FIELDS,
    TOKEN_TYPES,
)

TOKENS = ("input_ids", "attention_mask")

Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """An encoded prompt. Rollouts of one prompt share the same object.

    Args:
        token_ids: the prompt, unpadded.
        num_images: how many images it has.
        media: image tensors for the model's forward pass, without padding to other prompts; empty for text.
        token_types: the fields of `vgpo.media.TOKEN_TYPES` that the processor returns, one number per token.
        placeholder_ids: the prompt with one token per image, as inference engines take it; empty if no engine
        generates.
        num_tool_images: number of images from tools, whose tokens are in the response.
    """

    token_ids: list[int]
    num_images: int
    media: dict[str, Tensor]
    token_types: dict[str, list[int]]
    placeholder_ids: list[int] = field(default_factory=list)
    num_tool_images: int = 0

    def types_of(self, name: str) -> list[int]:
        """One token-type field; zeros if the processor omitted it, as for text."""
        return self.token_types.get(name, [0] * len(self.token_ids))


def encode(
    processor: ProcessorMixin, row: Mapping[str, Any], chat_template_kwargs: Mapping[str, Any], device: torch.device
) -> EncodedPrompt:
    """The prompt of a row from `vgpo.data.to_prompts`, as training encodes it."""
    fields = processor.apply_chat_template(
        [messages_with_images(row["prompt"], row["images"])],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **chat_template_kwargs,
    )
    return encoded_prompt(fields["input_ids"][0], len(row["images"]), dict(fields), device)


def response_prefix(processor: Any, chat_template_kwargs: Mapping[str, Any]) -> str:
    """The part of the response that the chat template writes at the end of a prompt, from `<think>` on; "" if none.

    Thinking models have such templates. A completion continues after it, and does not contain it.
    """
    messages = [{"role": "user", "content": [{"type": "text", "text": "1"}]}]
    closed, opened = (
        processor.apply_chat_template(messages, add_generation_prompt=is_open, tokenize=False, **chat_template_kwargs)
        for is_open in (False, True)
    )
    added = opened.removeprefix(closed)
    return added[added.index("<think>") :] if "<think>" in added else ""


def row_with_images_in_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose images are only in the messages of its prompt.

    Raises:
        ValueError: the row has images and its prompt is not a list of messages.
    """
    if row.keys().isdisjoint(IMAGE_COLUMNS):
        return row
    images = row.get("images") or [image for image in [row.get("image")] if image is not None]
    rest = {name: value for name, value in row.items() if name not in IMAGE_COLUMNS}
    prompt = row["prompt"]
    if isinstance(prompt, list) and prompt and "role" in prompt[0]:
        return {**rest, "prompt": messages_with_images(prompt, images)}
    if images:
        raise ValueError(
            f"A row has {len(images)} image(s), but its prompt is {type(prompt).__name__}, expected a list of "
            "messages: leave the chat template to the trainer."
        )
    return rest


def messages_with_images(messages: Sequence[Message], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages as lists of blocks, with `images` in their image blocks, in order.

    Text content becomes a text block. Without an image block, all images go before the first user text. Blocks that
    already contain an image are unchanged.

    Raises:
        ValueError: the numbers of images and image blocks differ.
    """
    blocks = [_as_blocks(message.get("content")) for message in messages]
    if images and not any(block["type"] == "image" for content in blocks for block in content):
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if first is not None:
            blocks[first] = [*({"type": "image"} for _ in images), *blocks[first]]
    rest = iter(images)
    filled = [
        [{**block, "image": next(rest, None)} if _awaits_image(block) else block for block in content]
        for content in blocks
    ]
    num_blocks = sum(_awaits_image(block) for content in blocks for block in content)
    if num_blocks != len(images):
        raise ValueError(
            f"A prompt has {num_blocks} image block(s) and {len(images)} image(s). Give each image one block of "
            '{"type": "image"}, or use none.'
        )
    return [
        {**message, "content": content} if message.get("content") is not None else dict(message)
        for message, content in zip(messages, filled, strict=True)
    ]


def _as_blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _awaits_image(block: Mapping[str, Any]) -> bool:
    return block["type"] == "image" and "image" not in block


def prompt_key(prompt: Any) -> Hashable:
    """Equal for prompts with the same text and identical image objects."""
    if isinstance(prompt, dict):
        return tuple((name, prompt_key(value)) for name, value in prompt.items())
    if isinstance(prompt, list):
        return tuple(map(prompt_key, prompt))
    return prompt if isinstance(prompt, str) else id(prompt)


def encoded_prompt(
    token_ids: list[int], num_images: int, fields: dict[str, Any], device: torch.device
) -> EncodedPrompt:
    """A prompt from the processor's output for it.

    Raises:
        ValueError: the processor returns a per-token field without a rule for response tokens.
    """
    types = {name: [int(value) for value in fields[name][0]] for name in TOKEN_TYPE_FIELDS if name in fields}
    media = media_fields(fields, device)
    check_no_token_fields(media, len(token_ids))
    return EncodedPrompt(list(token_ids), num_images, media, types)


def check_no_token_fields(media: Mapping[str, Tensor], num_tokens: int) -> None:
    """Check that no field has a value per token, shape (1, L, ...): it would have to grow with the response.

    Raises:
        ValueError: one does; names it.
    """
    for name, value in media.items():
        if value.shape[:2] == (1, num_tokens):
            raise ValueError(
                f"The processor returns {name!r} of shape {tuple(value.shape)}, a value for each of the {num_tokens} "
                "tokens of the prompt, and there is no rule for its values at response tokens. Known are "
                f"{', '.join((*TOKENS, *TOKEN_TYPE_FIELDS, *DROPPED_TOKEN_FIELDS))}. Add a rule to TOKEN_TYPES in "
                "vgpo/media.py, or choose another model."
            )


def media_fields(encoded: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The processor's output without its per-token fields, as tensors on a device."""
    per_token = (*TOKENS, *TOKEN_TYPE_FIELDS, *DROPPED_TOKEN_FIELDS)
    fields = {name: value for name, value in encoded.items() if name not in per_token}
    return {name: as_tensor(value).to(device) for name, value in fields.items() if not is_empty(value)}


def as_tensor(value: Any) -> Tensor:
    """Convert a field of a processor's output: a tensor, an array, numbers, or a list of tensors per image."""
    if isinstance(value, Tensor):
        return value
    first = value
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, Tensor):  # NumPy has no bfloat16
        parts = [as_tensor(item) for item in value]
        # Images with different numbers of tiles are concatenated.
        return torch.stack(parts) if len({part.shape for part in parts}) == 1 else torch.cat(parts)
    return torch.as_tensor(np.array(value))


def is_empty(value: Any) -> bool:
    """Whether a processor returned an empty field, as for a prompt without images."""
    return value is None or (isinstance(value, list) and all(item is None for item in value))


def joined_media(prompts: Sequence[EncodedPrompt], *, without: str | None = None) -> dict[str, Tensor]:
    """The media of several prompts, concatenated in order; a field that no prompt has is left out.

    Args:
        without: name prefixes of the fields to leave out.
    """
    names = dict.fromkeys(name for prompt in prompts for name in prompt.media)
    fields = {name: [prompt.media[name] for prompt in prompts if name in prompt.media] for name in names}
    return {name: joined_field(name, fields) for name in fields if without is None or not name.startswith(without)}


def joined_field(name: str, fields: Mapping[str, list[Tensor]]) -> Tensor:
    """One field of several prompts.

    Args:
        name: of the field.
        fields: the tensors of each field, one for each prompt that has it.
    """
    tensors = fields[name]
    if name in INDICES_OF:
        tensors = shifted(tensors, [patches.shape[0] * patches.shape[1] for patches in fields[INDICES_OF[name]]])
    if any(PACKED_BY.get(other) == name for other in fields):
        return torch.cat(tensors, dim=-1)
    return torch.cat(pad_to_widest(tensors, 0, left=False))


def shifted(indices: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Convert per-prompt indices to indices into the concatenation of all prompts.

    Args:
        indices: of each prompt; negative ones mean nothing and are unchanged.
        sizes: length of each prompt's part.
    """
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [torch.where(value < 0, value, value + start) for value, start in zip(indices, starts, strict=True)]


def has_media(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether a forward pass over these prompts runs the vision tower."""
    return any(prompt.media for prompt in prompts)


def prompt_columns(prompts: Sequence[EncodedPrompt], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """The prompts as a batch: ids and mask, padded on the left, (B, P)."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    pads = [width - len(prompt.token_ids) for prompt in prompts]
    ids = [[pad_token_id] * pad + prompt.token_ids for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in pads]
    return {"prompt_ids": torch.tensor(ids, device=device), "prompt_mask": torch.tensor(mask, device=device)}


def response_type(model_type: str, name: str) -> int:
    """The value of a token-type field at a token of the response, for a family of models."""
    return RESPONSE_TYPES.get(model_type, {}).get(name, TOKEN_TYPES[name])


def token_types(
    prompts: Sequence[EncodedPrompt], visual: Tensor, prompt_width: int, model_type: str = ""
) -> dict[str, Tensor]:
    """The token-type fields of padded rows: the processor's for prompts, `response_type` for responses, and 1 at
    images in responses.

    Args:
        prompts: the prompt of each of B rows.
        visual: image tokens, bool (B, P + T).
        prompt_width: P.
        model_type: of the model's config.
    """
    fields = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.token_types):
        columns = torch.zeros(len(prompts), prompt_width, dtype=torch.long)
        for column, prompt in zip(columns, prompts, strict=True):
            column[prompt_width - len(prompt.token_ids) :] = torch.tensor(prompt.types_of(name))
        images = visual[:, prompt_width:].long()
        responses = images.clamp(min=response_type(model_type, name))
        fields[name] = torch.cat([columns.to(visual.device), responses], dim=1)
    return fields


def generation_fields(prompts: Sequence[EncodedPrompt], media: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All fields except ids in TRL's format for generation: token types as lists, one per prompt.

    Args:
        media: used instead of `joined_media(prompts)`.
    """
    names = dict.fromkeys(name for prompt in prompts for name in prompt.token_types)
    types = {name: [prompt.types_of(name) for prompt in prompts] for name in names}
    return {**(joined_media(prompts) if media is None else media), **types}


def pad_to_widest(values: list[Tensor], fill: int, *, left: bool) -> list[Tensor]:
    """Pad all dimensions except the first to the largest in `values`."""
    widest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        shorts = [wide - size for wide, size in zip(widest, value.shape[1:], strict=True)]
        # F.pad starts with the last dimension.
        pads = [side for short in reversed(shorts) for side in ((short, 0) if left else (0, short))]
        padded.append(F.pad(value, pads, value=fill))
    return padded
