"""Compute a group's prompt once before its rollouts are sampled.

transformers' `generate` expands its inputs by `num_return_sequences` before it reads the prompt, so every decoder
layer computes the prompt once per rollout. Here each prompt is computed in one row, and its results (keys and values,
and the logits of the first token) are repeated instead. Sampling is unchanged: the rows, their order and the shape of
every draw are those of prompts repeated beforehand.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from transformers.generation import GenerationMode

from vgpo.shared_prompt.decoding import STATES, AttentionSwitch, repeat_prompts

# Inputs that only the prefill needs; decoding would repeat them for every rollout.
_IMAGES = ("mm_encoder_outputs", "pixel_", "image_", "video_")
# Names under which `generate` hands its cache on: up to transformers 5.23, and from 5.24 on.
_CACHE_NAMES = ("past_key_values", "cache")
# Kinds of layers of a cache that can be repeated.
_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer}
# Private methods of `generate` that are called or replaced here, with their leading parameters.
_HOOKS = {
    "_expand_inputs_for_generation": ("expand_size", "is_encoder_decoder", "input_ids"),
    "_prefill": ("input_ids", "generation_config", "model_kwargs"),
    "_prepare_generation_config": ("generation_config",),
}


class PrefillError(ValueError):
    """`generate` cannot compute each prompt once. Raised before sampling: the call can be repeated without sharing."""


@contextmanager
def prefill_once(model: nn.Module) -> Iterator[None]:
    """Let `model.generate` read each prompt once, whatever its `num_return_sequences`.

    Call `generate` inside the block with n unique left-padded prompts, their images, and
    `num_return_sequences=G`: it returns n * G rows, those of a prompt next to each other. The same seed gives the
    tokens of the n * G prompts repeated beforehand, up to the last bits of the logits, since a matrix product of n
    rows may round unlike one of n * G. Works on models wrapped by PEFT, DDP or torch.compile.

    Args:
        model: a decoder-only model of transformers, with or without images, wrapped or not.

    Raises:
        ValueError: if no part of `model` generates.
        PrefillError: from `generate`, for the reasons of `why_not_prefill_once`, for a cache argument that is not an
            empty DynamicCache, and where `generate` has no cache or no prefill stage of its own.
    """
    generator = generator_of(model)
    if reason := _why_not_hook(generator):
        raise PrefillError(f"prefill_once() cannot be used: {reason}.")
    expand_inputs, prefill = generator._expand_inputs_for_generation, generator._prefill
    prompt_inputs: dict[str, Any] = {}  # n rows each, from their expansion until they are read
    attention = AttentionSwitch()

    def expand_text(
        expand_size: int, is_encoder_decoder: bool, input_ids: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        prompt_inputs.update(kwargs)
        images = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith(_IMAGES)}
        input_ids, text = expand_inputs(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, {**text, **images}

    def prefill_prompts(
        input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any], **options: Any
    ) -> Any:
        attention.off()
        inputs = {**model_kwargs, **prompt_inputs}
        prompt_inputs.clear()
        num_rollouts = generation_config.num_return_sequences
        if max(generation_config.num_beams, num_rollouts) == 1:
            return prefill(input_ids, generation_config, model_kwargs, **options)
        cache: Any = next((model_kwargs[name] for name in _CACHE_NAMES if name in model_kwargs), None)
        if reason := _why_not_sample(generator, generation_config) or _why_not_repeat(cache):
            raise PrefillError(f"generate() inside prefill_once() cannot read each prompt once: {reason}.")
        outputs = prefill(input_ids[::num_rollouts], generation_config, inputs, **options)
        rows = torch.arange(len(input_ids) // num_rollouts, device=input_ids.device).repeat_interleave(num_rollouts)
        states = repeat_prompts(generator, cache, rows, inputs.get("attention_mask"))
        if states is not None:
            attention.on(generator, states)
            model_kwargs[STATES] = states
        outputs.logits = outputs.logits[:, -1:].repeat_interleave(num_rollouts, dim=0)  # (n * G, 1, vocabulary)
        # In place: the caller decodes with this dictionary, and its images are those of n rows.
        for key in [key for key in model_kwargs if key.startswith(_IMAGES)]:
            del model_kwargs[key]
        return outputs

    generator._expand_inputs_for_generation, generator._prefill = expand_text, prefill_prompts
    try:
        yield
    except Exception as error:
        if prompt_inputs:  # expanded, and still not read
            raise PrefillError("generate() expanded the prompts but did not call _prefill.") from error
        raise
    finally:
        attention.off()
        del generator._expand_inputs_for_generation, generator._prefill


def why_not_prefill_once(model: nn.Module, generation_config: GenerationConfig) -> str | None:
    """Why prompts must be computed once per rollout with this config; None if `prefill_once` works.

    Args:
        model: the model that will generate, wrapped or not. Its own generation config fills what
            `generation_config` leaves open, as in `generate`.

    Raises:
        ValueError: if no part of `model` generates.
    """
    generator = generator_of(model)
    if reason := _why_not_hook(generator):
        return reason
    config = generator._prepare_generation_config(generation_config)[0]
    cache = DynamicCache(config=generator.config.get_text_config(decoder=True))
    return _why_not_sample(generator, config) or _why_not_repeat(cache)


def generator_of(model: nn.Module) -> GenerationMixin:
    """The model inside all wrappers whose `generate` is run."""
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            return module
    raise ValueError(f"{type(model).__name__} has no part that generates: no module of it is a GenerationMixin.")


@contextmanager
def generate_replaced(model: nn.Module, generate: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, the model that generates has another `generate`, as one that calls its own."""
    own = vars(generator_of(model))
    before = own.get("generate")
    own["generate"] = generate
    try:
        yield
    finally:
        del own["generate"]
        if before is not None:
            own["generate"] = before


def _why_not_hook(generator: GenerationMixin) -> str | None:
    """Which private method of `generate` is not the one that is known here."""
    for name, expected in _HOOKS.items():
        method = getattr(generator, name, None)
        if method is None:
            return f"{type(generator).__name__} has no method {name} in this version of transformers"
        found = tuple(inspect.signature(method).parameters)
        if found[: len(expected)] != expected:
            return (
                f"{type(generator).__name__}.{name} takes ({', '.join(found)}), expected ({', '.join(expected)}, ...)"
            )
    return None


def _why_not_sample(generator: GenerationMixin, config: GenerationConfig) -> str | None:
    """The setting of a model or its generation config that requires a separate prefill per rollout, or None."""
    mode = config.get_generation_mode()
    if generator.config.is_encoder_decoder:
        return f"{type(generator).__name__} is an encoder-decoder model, whose prompts are not in the decoder's cache"
    if mode != GenerationMode.SAMPLE:
        return f"the generation mode is {mode.value}, and only sampling draws several rows of a prompt one by one"
    if not config.use_cache:
        return "use_cache is false, so the prompt is read again for every token"
    if config.cache_implementation not in (None, "dynamic"):
        return f"cache_implementation is {config.cache_implementation!r}; only a dynamic cache can be repeated"
    if (config.encoder_repetition_penalty or 1) != 1 or config.encoder_no_repeat_ngram_size:
        # In some versions these read one row per prompt.
        return "encoder_repetition_penalty and encoder_no_repeat_ngram_size read the prompt of every rollout"
    if config.output_attentions or config.output_hidden_states:
        return "output_attentions and output_hidden_states would hold one row per prompt, not one per rollout"
    return None


def _why_not_repeat(cache: Any) -> str | None:
    """What in a cache cannot be repeated for every rollout."""
    if cache is None:
        return f"generate() passes no cache under the names {', '.join(_CACHE_NAMES)}"
    if type(cache) is not DynamicCache:
        return f"the cache is a {type(cache).__name__}; only a DynamicCache can be repeated"
    if cache.get_seq_length() > 0:
        return f"the cache already holds {cache.get_seq_length()} tokens; start from an empty one"
    if others := {type(layer) for layer in cache.layers} - _LAYERS:
        names = ", ".join(sorted(layer.__name__ for layer in others))
        return f"the cache has layers of kinds that are not known here ({names})"
    return None
