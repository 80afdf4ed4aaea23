"""Responses of a model to rows, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin

from vgpo.policy.generation import respond
from vgpo.policy.prompts import encode


@dataclass(frozen=True)
class Completion:
    """A response as text.

    Attributes:
        text: Without special tokens; empty for an oversized prompt.
        num_prompt_tokens: Of the prompt, image tokens included.
        num_tokens: Of the response, end token included.
        truncated: Whether it was truncated at the token limit.
        oversized: Whether the prompt fills the model's context, so that no response was generated.
    """

    text: str
    num_prompt_tokens: int
    num_tokens: int
    truncated: bool
    oversized: bool = False


def oversized(num_prompt_tokens: int) -> Completion:
    """Placeholder for the response to a prompt that does not fit."""
    return Completion("", num_prompt_tokens, 0, truncated=False, oversized=True)


def context_length_of(config: PretrainedConfig) -> int | None:
    """The context length of a model from its config; None if it is not set."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def fits(num_prompt_tokens: int, context_length: int | None) -> bool:
    """Whether a prompt leaves room for a response; None means an unknown context length."""
    return context_length is None or num_prompt_tokens < context_length


def complete(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Mapping[str, Any]],
    decoding: GenerationConfig,
    chat_template_kwargs: Mapping[str, Any],
    *,
    seed: int = 0,
    context_length: int | None = None,
) -> list[Completion]:
    """A response to each row, generated in one batch.

    Args:
        model: On its device.
        processor: Its processor.
        rows: With `prompt` and `images`, as in `vgpo.data.to_prompts`.
        decoding: From `greedy_decoding` or `sampled_decoding`.
        chat_template_kwargs: As in training.
        seed: Sampling seed.
        context_length: Maximum number of tokens of the model; a prompt that fills it is skipped. None for no check.
    """
    prompts = [encode(processor, row, chat_template_kwargs, model.device) for row in rows]
    found = [oversized(len(prompt.token_ids)) for prompt in prompts]
    asked = [number for number, one in enumerate(found) if fits(one.num_prompt_tokens, context_length)]
    if not asked:
        return found
    responses = respond(model, [prompts[number] for number in asked], decoding, seed=seed)
    ends = torch.tensor(decoding.eos_token_id, device=responses.ids.device)
    ended = torch.isin(responses.ids, ends).any(dim=1).tolist()
    texts = processor.batch_decode(responses.ids, skip_special_tokens=True)
    lengths = responses.mask.sum(1).tolist()
    for number, text, length, end in zip(asked, texts, lengths, ended, strict=True):
        found[number] = Completion(text, len(prompts[number].token_ids), length, truncated=not end)
    return found
