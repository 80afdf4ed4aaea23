"""vLLM in this process, answering prompts as training encodes them; for evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, ProcessorMixin

from vgpo.focus import banned_token_ids
from vgpo.policy.prompts import encode, messages_with_images
from vgpo.vllm.prompts import BANNED_BIAS, EngineError, check_same_prompts, placeholder_ids, processor_options

CPU = torch.device("cpu")


@dataclass(frozen=True)
class EngineResponse:
    """A response of the engine.

    Attributes:
        token_ids: End token included, where it ended.
        log_probs: Of each token, as it was sampled from.
        ended: Whether it ended by itself, within the token limit.
        num_prompt_tokens: Of the prompt, image tokens included.
        oversized: Whether the prompt fills the engine's context, so that it was not asked.
    """

    token_ids: list[int]
    log_probs: list[float]
    ended: bool
    num_prompt_tokens: int
    oversized: bool = False


class OfflineEngine:
    """A checkpoint in vLLM, with the processor, pixel limits and banned tokens of training.

    Args:
        model: Folder or hub name of a checkpoint with all its weights; an adapter is merged first (`vgpo merge`).
        processor: As training uses it; its pixel limits are given to vLLM's own.
        config: Of the checkpoint.
        dtype: In which vLLM computes: float32, bfloat16 or float16.
        options: Further arguments of `vllm.LLM`.

    Raises:
        EngineError: vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        processor: ProcessorMixin,
        config: PretrainedConfig,
        *,
        dtype: str,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported ({error}): pip install 'trl[vllm]'") from error
        self.processor = processor
        self.banned = banned_token_ids(config)
        limits = processor_options(processor)
        self.llm = LLM(
            model=model,
            dtype=dtype,
            mm_processor_kwargs=limits or None,
            logprobs_mode="processed_logprobs",
            trust_remote_code=trust_remote_code,
            **options,
        )
        self.context_length = self.llm.llm_engine.model_config.max_model_len

    def respond(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EngineResponse]:
        """A response to each row of `vgpo.data.to_prompts`; the most likely token each time at temperature 0.

        Args:
            rows: One batch.
            max_new_tokens: Longest response, in tokens.
            temperature: 0, or that of samples from the full softmax.
            seeds: One for each sample; empty for vLLM's own.
            chat_template_kwargs: As in training.

        Raises:
            EngineError: vLLM read another prompt than the one that training encodes.
        """
        from vllm import SamplingParams

        kwargs = chat_template_kwargs or {}
        prompts = [encode(self.processor, row, kwargs, CPU).token_ids for row in rows]
        asked = [number for number, prompt in enumerate(prompts) if len(prompt) < self.context_length]
        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                logprobs=0,
                seed=seeds[number] if seeds else None,
                logit_bias=dict.fromkeys(self.banned, BANNED_BIAS) or None,
            )
            for number in asked
        ]
        requests = [self._request(rows[number], prompts[number], kwargs) for number in asked]
        outputs = self.llm.generate(requests, sampling_params=sampling, use_tqdm=False) if asked else []
        check_same_prompts([prompts[number] for number in asked], [output.prompt_token_ids for output in outputs])
        found = {number: as_response(output) for number, output in zip(asked, outputs, strict=True)}
        return [found.get(number) or oversized_response(len(prompt)) for number, prompt in enumerate(prompts)]

    def _request(self, row: Mapping[str, Any], prompt: list[int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A prompt with one placeholder for each image, and the images."""
        images = list(row["images"])
        if not images:
            return {"prompt_token_ids": prompt}
        text = self.processor.apply_chat_template(
            messages_with_images(row["prompt"], images), add_generation_prompt=True, tokenize=False, **kwargs
        )
        return {
            "prompt_token_ids": placeholder_ids(self.processor, text),
            "multi_modal_data": {"image": images},
        }


def as_response(request: Any) -> EngineResponse:
    """From vLLM's `RequestOutput`."""
    output = request.outputs[0]
    chosen = zip(output.token_ids, output.logprobs, strict=True)
    return EngineResponse(
        token_ids=list(output.token_ids),
        log_probs=[scores[token].logprob for token, scores in chosen],
        ended=output.finish_reason == "stop",
        num_prompt_tokens=len(request.prompt_token_ids),
    )


def oversized_response(num_prompt_tokens: int) -> EngineResponse:
    """In place of a response to a prompt that does not fit."""
    return EngineResponse([], [], ended=False, num_prompt_tokens=num_prompt_tokens, oversized=True)
