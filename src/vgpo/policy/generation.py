"""Generate responses to encoded prompts, and the padded rows for scoring them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from vgpo.focus import banned_token_ids, named_visual_token_ids, visual_token_mask
from vgpo.policy.prompts import EncodedPrompt, joined_media, prompt_columns, token_types
from vgpo.policy.scoring import Rows


@dataclass(frozen=True)
class Responses:
    """A response to each of B prompts.

    Attributes:
        rows: Prompts and responses as model inputs.
        mask: True at response tokens, including the end token; bool (B, T).
    """

    rows: Rows
    mask: Tensor

    @property
    def ids(self) -> Tensor:
        """The responses, padded on the right; (B, T)."""
        return self.rows.input_ids[:, self.rows.prompt_width :]


def greedy_decoding(model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding that overrides the sampling settings of the checkpoint's generation config."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    tokenizer = processor.tokenizer
    ends = {token for token in (*declared, tokenizer.eos_token_id) if token is not None}
    return GenerationConfig(
        do_sample=False,
        # Neutral values, so that those of the checkpoint are not filled in.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        # A generated image token would refer to a missing image.
        suppress_tokens=banned_token_ids(model.config),
        use_cache=True,
        disable_compile=True,
    )


def sampled_decoding(
    model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Sampling from the full softmax, with the end and banned tokens of greedy decoding."""
    decoding = greedy_decoding(model, processor, max_new_tokens)
    decoding.update(do_sample=True, temperature=temperature, top_k=0)
    return decoding


def respond(
    model: PreTrainedModel, prompts: Sequence[EncodedPrompt], decoding: GenerationConfig, *, seed: int = 0
) -> Responses:
    """Generate a response to each prompt. Repeat a prompt for several samples.

    Args:
        model: On its device; its train/eval mode is restored.
        prompts: On the same device.
        decoding: From `greedy_decoding` or `sampled_decoding`.
        seed: Sampling seed; deterministic for the same prompts in the same order.
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
            **joined_media(prompts),
            generation_config=decoding,
        )
    mask = response_mask(sequences[:, ids.shape[1] :], decoding.eos_token_id)
    attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
    return Responses(Rows(sequences, attention_mask, ids.shape[1], prompts), mask)


def as_responses(
    prompts: Sequence[EncodedPrompt], token_ids: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> Responses:
    """Existing responses, from their token ids."""
    prompt = prompt_columns(prompts, pad_token_id, device)
    parts = [torch.tensor(ids, dtype=torch.long, device=device) for ids in token_ids]
    mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)  # (B, T)
    ids = torch.cat([prompt["prompt_ids"], pad_sequence(parts, batch_first=True, padding_value=pad_token_id)], dim=1)
    attention_mask = torch.cat([prompt["prompt_mask"], mask], dim=1)
    return Responses(Rows(ids, attention_mask, prompt["prompt_ids"].shape[1], prompts), mask.bool())


def response_mask(responses: Tensor, end_ids: list[int]) -> Tensor:
    """True up to and including the first end token; bool (B, T)."""
    ends = torch.isin(responses, torch.tensor(end_ids, device=responses.device))
    return ends.cumsum(1) - ends.long() == 0


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Disable dropout and gradients inside the block; the mode of every module is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
