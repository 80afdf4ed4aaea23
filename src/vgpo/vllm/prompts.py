"""Prompts as an inference engine takes them, and the check that it read what the trainer trains on.

A processor writes N image tokens for an image, as many as the image has features. An engine has a processor of its
own: it takes one placeholder for each image beside the image, and writes the N tokens itself.
"""

from collections.abc import Sequence
from typing import Any

TokenIds = Sequence[int]

LOWEST_RATIO = 0.01
BANNED_BIAS = -100.0  # a logit bias with which vLLM never samples a token
LIMITS = ("shortest_edge", "longest_edge")


class EngineError(RuntimeError):
    """The inference engine cannot be used, or does not meet the trainer's assumptions."""


def placeholder_ids(processor: Any, text: str) -> list[int]:
    """The ids of a rendered prompt as the tokenizer gives them: one placeholder for each image.

    Args:
        processor: Of the model, with its tokenizer.
        text: The messages rendered by its chat template; a beginning-of-text token is in it or is added, as by the
        processor.
    """
    tokenizer = processor.tokenizer
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not begins)["input_ids"]


def with_placeholders(token_ids: TokenIds, prompt_ids: TokenIds, placeholders: TokenIds) -> list[int]:
    """What the engine gets for `token_ids`: the prompt that they begin with as `placeholders`, and then the rest.

    Args:
        token_ids: A prompt, perhaps with turns after it.
        prompt_ids: The prompt as the trainer encoded it.
        placeholders: The same prompt, see `placeholder_ids`.

    Raises:
        EngineError: The tokens do not begin with the prompt.
    """
    if list(token_ids[: len(prompt_ids)]) != list(prompt_ids):
        raise EngineError(
            "A rollout does not begin with the prompt that was encoded for it, so its images have no place in what "
            "the inference engine gets. Generate with transformers (use_vllm: false)."
        )
    return [*placeholders, *token_ids[len(prompt_ids) :]]


def check_same_prompts(trained: Sequence[TokenIds], read: Sequence[TokenIds]) -> None:
    """Whether the engine read the prompts that are trained on, token by token.

    Args:
        trained: The prompts of the trainer.
        read: Those that the engine says it answered.

    Raises:
        EngineError: Some differ; names the first row, both lengths and the first difference.
    """
    wrong = [row for row, (own, other) in enumerate(zip(trained, read, strict=True)) if list(own) != list(other)]
    if not wrong:
        return
    row = wrong[0]
    own, other = list(trained[row]), list(read[row])
    place = next((at for at, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(own), len(other)) if place is None else place
    raise EngineError(
        f"The inference engine read another prompt than the one that is trained on, in {len(wrong)} of {len(trained)} "
        f"rows. Row {row}: {len(own)} tokens in the trainer, {len(other)} in the engine, different from token {place} "
        f"on ({own[place : place + 8]} and {other[place : place + 8]}). Usual causes are other pixel limits, another "
        "processor or another chat template in the engine. Nothing was trained on these rows."
    )


def check_importance_ratio(ratios: Sequence[float], step: int) -> None:
    """Whether the engine sampled from anything like the policy; an alarm would come after updates.

    Args:
        ratios: Mean importance ratios of the policy to the engine, the last one of the current rollouts.
        step: The last optimizer step, for the message.

    Raises:
        EngineError: The last ratio is close to zero.
    """
    if ratios and ratios[-1] < LOWEST_RATIO:
        raise EngineError(
            f"The mean importance ratio of the policy to the inference engine is {ratios[-1]:.1e} after step {step}: "
            "the engine sampled from another distribution than the policy's, and training on it would learn nothing. "
            "Compare its checkpoint, dtype and quantization with the trainer's."
        )


def processor_options(processor: Any) -> dict[str, Any]:
    """What an engine must tell its own processor, so that images become as many tokens as in the trainer.

    These are the limits of pixels, where the kind of processor has them; a checkpoint's files have its own.
    """
    images = processor.image_processor
    if "max_pixels" not in getattr(images.valid_kwargs, "__annotations__", {}):
        return {}
    return {"size": {edge: int(images.size[edge]) for edge in LIMITS}}
