"""Responses to a batch of requests, sampled with transformers. Knows neither verl nor Ray."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from vgpo.focus import named_visual_token_ids, visual_token_mask
from vgpo.policy.generation import response_mask
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt, joined_media, prompt_columns, token_types
from vgpo.shared_prompt.generation import prefill_once

# The sampling parameters that verl and vgpo send, with the value that changes nothing.
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "logprobs": False,
}


@dataclass(frozen=True)
class Request:
    """One response is requested.

    Attributes:
        prompt_ids: The prompt, with one token for each merged patch of its images.
        images: In the order of the prompt.
        processor_kwargs: What the processor gets beside the images.
        sampling: Names of `NEUTRAL`; one that is missing has its neutral value.
        max_tokens: Most tokens of the response, the end token included.
    """

    prompt_ids: Sequence[int]
    images: Sequence[Image]
    processor_kwargs: Mapping[str, Any]
    sampling: Mapping[str, Any]
    max_tokens: int

    @cached_property
    def settings(self) -> str:
        """Equal for requests that one call of `generate` can serve."""
        return json.dumps([dict(self.sampling), self.max_tokens], sort_keys=True)

    @cached_property
    def prompt_key(self) -> bytes:
        """Equal for requests of the same prompt and images."""
        words = json.dumps([list(self.prompt_ids), dict(self.processor_kwargs)], sort_keys=True)
        digest = hashlib.sha256(words.encode())
        for image in self.images:
            digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Response:
    """A sampled response.

    Attributes:
        token_ids: With the end token, where one was drawn.
        log_probs: Of each token, under the distribution at the temperature, before top-p, top-k and biases are applied
            of it away: what the actor computes as `old_log_probs`.
    """

    token_ids: list[int]
    log_probs: list[float]


def respond(model: PreTrainedModel, processor: ProcessorMixin, requests: Sequence[Request]) -> list[Response]:
    """A response to each request, in order. Requests of one prompt share its images and its reading.

    The order in which requests arrive does not change what is drawn: prompts are sorted by content.
    """
    answers: dict[int, Response] = {}
    for settings in sorted({request.settings for request in requests}):
        groups: dict[bytes, list[int]] = {}
        for number, request in enumerate(requests):
            if request.settings == settings:
                groups.setdefault(request.prompt_key, []).append(number)
        # `generate` draws equally many rollouts for all its prompts.
        for size in sorted({len(group) for group in groups.values()}):
            alike = [groups[key] for key in sorted(groups) if len(groups[key]) == size]
            drawn = _draw(model, processor, [requests[group[0]] for group in alike], size)
            answers.update(zip([number for group in alike for number in group], drawn, strict=True))
    return [answers[number] for number in range(len(requests))]


def _draw(
    model: PreTrainedModel, processor: ProcessorMixin, requests: Sequence[Request], num_rollouts: int
) -> list[Response]:
    """`num_rollouts` responses to each of several requests of equal settings, next to each other."""
    prompts = [encode(processor, model, request) for request in requests]
    decoding = decoding_of(requests[0], model, processor)
    is_greedy = not decoding.do_sample
    decoding.num_return_sequences = 1 if is_greedy else num_rollouts
    columns = prompt_columns(prompts, decoding.pad_token_id, model.device)
    ids, mask = columns["prompt_ids"], columns["prompt_mask"]
    visual = visual_token_mask(ids, named_visual_token_ids(model.config)) & mask.bool()
    with torch.no_grad(), prefill_once(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **token_types(prompts, visual, ids.shape[1]),
            **joined_media(prompts),
            generation_config=decoding,
        )
    drawn = output.sequences[:, ids.shape[1] :]
    lengths = response_mask(drawn, decoding.eos_token_id or []).sum(1).tolist()
    log_probs = token_log_probs(output.logits, drawn, requests[0].sampling.get("temperature", 1.0))
    rows = zip(drawn.tolist(), log_probs.tolist(), lengths, strict=True)
    responses = [Response(tokens[:length], values[:length]) for tokens, values, length in rows]
    return [response for response in responses for _ in range(num_rollouts if is_greedy else 1)]


def token_log_probs(logits: Sequence[Tensor], tokens: Tensor, temperature: float) -> Tensor:
    """Log-probability of each drawn token at a temperature; (B, T). Greedy decoding counts as temperature 1.

    Args:
        logits: Of each step, (B, vocabulary).
        tokens: (B, T).
    """
    scaled = torch.stack(tuple(logits), dim=1).float() / (temperature or 1.0)  # (B, T, vocabulary)
    return scaled.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def encode(processor: ProcessorMixin, model: PreTrainedModel, request: Request) -> EncodedPrompt:
    """A request's prompt with the tensors of its images.

    Raises:
        ValueError: the prompt has more or fewer image tokens than its images fill.
    """
    ids, image_token = list(request.prompt_ids), model.config.image_token_id
    fields: dict[str, Any] = {"mm_token_type_ids": [[int(token == image_token) for token in ids]]}
    expected = 0
    if request.images:
        kwargs = {"return_tensors": "pt", **request.processor_kwargs}
        fields |= processor.image_processor(images=list(request.images), **kwargs)
        expected = int((fields["image_grid_thw"].prod(-1) // processor.image_processor.merge_size**2).sum())
    if ids.count(image_token) != expected:
        raise ValueError(
            f"A prompt of {len(ids)} tokens has {ids.count(image_token)} image tokens, expected {expected} for its "
            f"{len(request.images)} image(s) with processor arguments {dict(request.processor_kwargs)}: give the "
            "server the images and arguments with which the prompt was built."
        )
    return encoded_prompt(ids, len(request.images), fields, model.device)


def decoding_of(request: Request, model: PreTrainedModel, processor: ProcessorMixin) -> GenerationConfig:
    """How `generate` draws what a request asks for.

    Raises:
        ValueError: the request has a sampling parameter that is not implemented; names it.
    """
    if unknown := request.sampling.keys() - NEUTRAL.keys():
        raise ValueError(
            f"Sampling parameters {sorted(unknown)} are not implemented, expected some of {list(NEUTRAL)}"
        )
    wanted = {**NEUTRAL, **request.sampling}
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    ends = {token for token in (*declared, processor.tokenizer.eos_token_id) if token is not None}
    ends = set() if wanted["ignore_eos"] else ends
    bias = {int(token): float(value) for token, value in (wanted["logit_bias"] or {}).items()}
    decoding = GenerationConfig(
        do_sample=False,
        # Neutral values, so that those of the checkpoint are not filled in.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=wanted["repetition_penalty"],
        sequence_bias=[[[token], value] for token, value in sorted(bias.items())] or None,
        eos_token_id=sorted(ends.union(wanted["stop_token_ids"] or ())) or None,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_new_tokens=request.max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
        disable_compile=True,
    )
    if wanted["temperature"] > 0:
        drawn = {name: wanted[name] for name in ("temperature", "top_p")}
        decoding.update(do_sample=True, top_k=max(wanted["top_k"], 0), **drawn)
    return decoding
