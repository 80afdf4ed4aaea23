"""Prompts of the data that parity is measured on, and what a model or its processor may raise for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.prompts import EncodedPrompt

ROWS = 8  # of the dataset, in which prompts with unlike images are looked for
TEXT_PROMPT = [{"role": "user", "content": [{"type": "text", "text": "How many are there?"}]}]
SEED = 20260409  # of responses and other pixels; the state of every random generator is restored
# What a model or its processor may raise for input that it cannot take.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, StopIteration,
    TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Probes:
    """Prompts that parity is measured on.

    Args:
        prompts: two, with unlike images; without images for a set that has none.
        text: one without an image, or None if the processor takes none.
        blank: what the processor makes of a blank image, or None.
        needs_text: whether the data have rows without an image beside those with one.
    """

    prompts: list[EncodedPrompt]
    text: EncodedPrompt | None
    blank: dict[str, Tensor] | None
    needs_text: bool


def choose_probes(rows: Iterable[Mapping[str, Any]], encode: Callable[[Any, list[Any]], EncodedPrompt]) -> Probes:
    """Probes among the first rows of a dataset.

    Args:
        rows: of the dataset, with a prompt and images.
        encode: takes messages and their images.
    """
    found = [encode(row["prompt"], row.get("images") or []) for row in islice(rows, ROWS)]
    with_images, text = [prompt for prompt in found if prompt.media], [prompt for prompt in found if not prompt.media]
    first, *others = with_images or text
    other = next(
        (prompt for prompt in others if len(prompt.token_ids) != len(first.token_ids)), (others or [first])[0]
    )
    blank = encoded_or_none(encode, blank_prompt())
    plain = text[0] if text else encoded_or_none(encode, TEXT_PROMPT)
    return Probes([first, other], plain, blank.media if blank else None, needs_text=bool(text and with_images))


def encoded_or_none(
    encode: Callable[[Any, list[Any]], EncodedPrompt], prompt: list[dict[str, Any]]
) -> EncodedPrompt | None:
    """A prompt that is not of the data, if the processor takes it; some demand an image."""
    try:
        return encode(prompt, [])
    except FAULTS:
        return None


def with_other_pixels(prompt: EncodedPrompt) -> EncodedPrompt:
    """The prompt with other pixels in images of the same sizes; tiles of zeros, which fill up a batch, stay."""
    draw = torch.Generator().manual_seed(SEED)

    def other(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.ndim < 2 or "pixel" not in name:
            return value
        noise = torch.randn(value.shape, generator=draw).to(value)
        return torch.where(value == 0, value, value + noise)

    return replace(prompt, media={name: other(name, value) for name, value in prompt.media.items()})
