"""Shares of the last layer's attention on image, question and generated tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vgpo.focus import decoder_of, visual_token_ids
from vgpo.focus.recorder import layers_of
from vgpo.inspection.reading import forward
from vgpo.inspection.schema import ATTENDED
from vgpo.inspection.weights import json_values
from vgpo.policy.generation import Responses, evaluation_mode
from vgpo.policy.scoring import padded_input


class AttentionError(ValueError):
    """A model does not expose its attention weights; the message says why."""


def attention_shares(model: PreTrainedModel, responses: Responses) -> list[dict[str, list[float]]]:
    """Attention of each response token in the last attention layer, averaged over heads and summed by source.

    `image`: visual tokens. `question`: all other tokens of the prompt, including those of the chat template.
    `generated`: the response up to the token itself. The three add up to 1. Some tokens, especially the first of a
    prompt, attract attention regardless of their content: a large share does not prove use.

    Each row has a separate pass with eager attention, the only implementation that returns weights; the weights of
    other layers are freed immediately.

    Returns:
        A dict per response, with a number per token for each of `ATTENDED`.

    Raises:
        AttentionError: The model's attention implementation cannot be changed, or no layer has attention.
    """
    shares = []
    ids = visual_token_ids(model.config)
    with evaluation_mode(model), plain_attention(model):
        for row, mask in zip(responses.rows.chunks(1), responses.mask, strict=True):
            inputs = padded_input(row, ids, model.config.model_type)
            with kept_weights(attention_of(decoder_of(model))) as weights:
                forward(model, inputs)
            shares.append(by_source(weights[0], inputs.visual_prompt[0], inputs.attention_mask[0], mask))
    return shares


def by_source(weights: Tensor, visual: Tensor, read: Tensor, mask: Tensor) -> dict[str, list[float]]:
    """Sums by source, normalised to 1, for the response tokens.

    Args:
        weights: (L, L), from each token to each token.
        visual: bool (P,), visual tokens of the prompt.
        read: (L,), 0 at padding.
        mask: bool (T,), the response.
    """
    rows = weights[len(visual) :][mask].double() * read  # (T', L)
    prompt = rows[:, : len(visual)]
    image = prompt[:, visual].sum(1)
    sums = torch.stack([image, prompt.sum(1) - image, rows[:, len(visual) :].sum(1)])  # (3, T')
    return {name: json_values(share) for name, share in zip(ATTENDED, sums / sums.sum(0), strict=True)}


def attention_of(decoder: nn.Module) -> nn.Module:
    """The attention module of the last layer that has one.

    Raises:
        AttentionError: No layer has one.
    """
    attentions = [
        module for layer in layers_of(decoder) for name, module in layer.named_children() if name == "self_attn"
    ]
    if not attentions:
        raise AttentionError(
            f"No layer of {type(decoder).__name__} has a module named 'self_attn' whose attention could be read. "
            "Inspect this model without attention."
        )
    return attentions[-1]


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, the text decoder uses eager attention; the previous implementation is restored afterwards.

    Raises:
        AttentionError: It cannot be changed.
    """
    decoder = decoder_of(model)
    assert isinstance(decoder, PreTrainedModel)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    if decoder.config._attn_implementation != "eager":
        raise AttentionError(
            f"The attention of {type(decoder).__name__} stays {before!r}, which does not return weights. Load the "
            "model with attn_implementation='eager', or inspect it without attention."
        )
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


@contextmanager
def kept_weights(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Attention weights of a module inside the block, of the first row, averaged over heads; (L, L)."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        del module, args
        weights = output[1]
        assert weights is not None
        kept.append(weights[0].mean(0))

    handle = attention.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
