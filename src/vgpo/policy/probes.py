"""Prompts for the parity check, and the errors that a model or its processor may raise for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.prompts import EncodedPrompt

ROWS = 8  # rows searched for prompts with different images
TEXT_PROMPT = [{"role": "user", "content": [{"type": "text", "text": "How many are there?"}]}]
SEED = 20260409  # for responses and other pixels; the state of every random generator is restored
# Errors that a model or its processor may raise for unsupported input.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, StopIteration,
    TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Probes:
    """Prompts for the parity check.

    Args:
        prompts: two, with different images; without images for a dataset that has none.
        text: one without an image, or None if the processor does not accept one.
        blank: the processor's output for a blank image, or None.
        needs_text: whether the data have rows both with and without an image.
    """

    prompts: list[EncodedPrompt]
    text: EncodedPrompt | None
    blank: dict[str, Tensor] | None
    needs_text: bool


def choose_probes(rows: Iterable[Mapping[str, Any]], encode: Callable[[Any, list[Any]], EncodedPrompt]) -> Probes:
    """Select probes from the first rows of a dataset.

    Args:
        rows: of the dataset, with a prompt and images.
        encode: encodes messages and their images.
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
    """A text-only prompt, if the processor accepts it; some require an image."""
    try:
        return encode(prompt, [])
    except FAULTS:
        return None


def with_other_pixels(prompt: EncodedPrompt) -> EncodedPrompt:
    """The prompt with other pixels in images of the same sizes; tiles of zeros, which are padding, are unchanged."""
    draw = torch.Generator().manual_seed(SEED)

    def other(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.ndim < 2 or "pixel" not in name:
            return value
        noise = torch.randn(value.shape, generator=draw).to(value)
        return torch.where(value == 0, value, value + noise)

    return replace(prompt, media={name: other(name, value) for name, value in prompt.media.items()})
