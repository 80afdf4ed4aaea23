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
    """

    token_ids: list[int]
    log_probs: list[float]
    ended: bool


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

    def respond(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EngineResponse]:
        """A response to each row of `vgpo.data.to_prompts`; the most likely token each time at temperature 0.

        Raises:
            EngineError: vLLM read another prompt than the one that training encodes.
        """
        from vllm import SamplingParams

        kwargs = chat_template_kwargs or {}
        prompts = [encode(self.processor, row, kwargs, CPU).token_ids for row in rows]
        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                logprobs=0,
                seed=None if seed is None else seed + number,  # a row that is there twice gets two samples
                logit_bias=dict.fromkeys(self.banned, BANNED_BIAS) or None,
            )
            for number in range(len(rows))
        ]
        requests = [self._request(row, prompt, kwargs) for row, prompt in zip(rows, prompts, strict=True)]
        outputs = self.llm.generate(requests, sampling_params=sampling, use_tqdm=False)
        check_same_prompts(prompts, [output.prompt_token_ids for output in outputs])
        return [as_response(output.outputs[0]) for output in outputs]

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


def as_response(output: Any) -> EngineResponse:
    """From vLLM's `CompletionOutput`."""
    chosen = zip(output.token_ids, output.logprobs, strict=True)
    return EngineResponse(
        token_ids=list(output.token_ids),
        log_probs=[scores[token].logprob for token, scores in chosen],
        ended=output.finish_reason == "stop",
    )
