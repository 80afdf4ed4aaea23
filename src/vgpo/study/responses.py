"""Responses of a policy to encoded prompts, and the rows in which a model reads them again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin
from trl import prepare_multimodal_messages

from vgpo.focus import named_visual_token_ids, visual_token_mask
from vgpo.study.evaluate import evaluation_mode, greedy_decoding
from vgpo.trl.corruption import prompt_columns
from vgpo.trl.forward import Rows
from vgpo.trl.prompts import EncodedPrompt, encoded_prompt, joined_pictures, token_types


@dataclass(frozen=True)
class Responses:
    """A response to each of B prompts.

    Attributes:
        rows: Prompts and responses as a model reads them.
        mask: True at the tokens of the responses, end token included; bool (B, T).
    """

    rows: Rows
    mask: Tensor

    @property
    def ids(self) -> Tensor:
        """The responses, padded on the right; (B, T)."""
        return self.rows.input_ids[:, self.rows.prompt_width :]


def encode(
    processor: ProcessorMixin, row: Mapping[str, Any], chat_template_kwargs: Mapping[str, Any], device: torch.device
) -> EncodedPrompt:
    """The prompt of a row of `vgpo.data.to_prompts`."""
    fields = processor.apply_chat_template(
        [prepare_multimodal_messages(row["prompt"], images=row["images"])],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **chat_template_kwargs,
    )
    return encoded_prompt(fields["input_ids"][0], len(row["images"]), dict(fields), device)


def sampling(
    model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Draws from the whole softmax, with the end and banned tokens of greedy decoding."""
    decoding = greedy_decoding(model, processor, max_new_tokens)
    decoding.update(do_sample=True, temperature=temperature, top_k=0)
    return decoding


def respond(
    model: PreTrainedModel, prompts: Sequence[EncodedPrompt], decoding: GenerationConfig, *, seed: int
) -> Responses:
    """Generate a response to each prompt. A prompt may be there several times, for several samples.

    Args:
        model: On its device; its mode is left as it was found.
        prompts: On the same device.
        decoding: Of `sampling` or `vgpo.study.evaluate.greedy_decoding`.
        seed: Draws the samples; the same for the same prompts in the same order.
    """
    prompt = prompt_columns(prompts, decoding.pad_token_id, model.device)
    ids, prompt_mask = prompt["prompt_ids"], prompt["prompt_mask"]
    visual = visual_token_mask(ids, named_visual_token_ids(model.config)) & prompt_mask.bool()
    with evaluation_mode(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        sequences = model.generate(
            input_ids=ids,
            attention_mask=prompt_mask,
            **token_types(prompts, visual, ids.shape[1]),
            **joined_pictures(prompts),
            generation_config=decoding,
        )
    mask = response_mask(sequences[:, ids.shape[1] :], decoding.eos_token_id)
    attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
    return Responses(Rows(sequences, attention_mask, ids.shape[1], prompts), mask)


def as_responses(
    prompts: Sequence[EncodedPrompt], token_ids: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> Responses:
    """Responses that are there already: the token ids of each."""
    prompt = prompt_columns(prompts, pad_token_id, device)
    parts = [torch.tensor(ids, dtype=torch.long, device=device) for ids in token_ids]
    mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)  # (B, T)
    ids = torch.cat([prompt["prompt_ids"], pad_sequence(parts, batch_first=True, padding_value=pad_token_id)], dim=1)
    attention_mask = torch.cat([prompt["prompt_mask"], mask], dim=1)
    return Responses(Rows(ids, attention_mask, prompt["prompt_ids"].shape[1], prompts), mask.bool())


def response_mask(responses: Tensor, end_ids: list[int]) -> Tensor:
    """True up to the first end token and at it; bool (B, T)."""
    ends = torch.isin(responses, torch.tensor(end_ids, device=responses.device))
    return ends.cumsum(1) - ends.long() == 0
