"""Forward passes that fill a cache of prompts, or continue from one, with any wrapper and gradient checkpointing."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import Cache

from vgpo.focus import decoder_of, last_hidden_state
from vgpo.shared_prompt.layers import check_all_read

CACHE_NAMES = ("cache", "past_key_values")  # the argument's name from transformers 5.24 on, and before
CHECKPOINT = "_gradient_checkpointing_func"  # the attribute of a layer that is computed again in the backward pass


def cache_argument(model: nn.Module) -> str | None:
    """The name under which a model's forward takes a cache, or None if it takes none."""
    vlm = extract_model_from_parallel(model, keep_torch_compile=False)
    vlm = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    known = inspect.signature(type(vlm).forward).parameters
    return next((name for name in CACHE_NAMES if name in known), None)


@contextmanager
def with_cache(model: nn.Module, cache: Cache) -> Iterator[dict[str, Cache]]:
    """Inside the block, one forward pass of `model` uses the cache, with the keyword argument that the block gets.

    Raises:
        ValueError: gradient checkpointing is reentrant, which loses the gradients of the cache.
        RuntimeError: a layer did not read the cache.
    """
    name = cache_argument(model)
    assert name is not None, "why_not_shared() has checked it"
    # The layers themselves: a wrapper around one shows its attributes, and would keep what is set.
    layers = [module for module in decoder_of(model).modules() if CHECKPOINT in vars(module)]
    before = [getattr(layer, CHECKPOINT) for layer in layers]
    try:
        for layer, checkpoint in zip(layers, before, strict=True):
            setattr(layer, CHECKPOINT, keeping_cache(checkpoint, cache))
        yield {name: cache}
    finally:
        for layer, checkpoint in zip(layers, before, strict=True):
            setattr(layer, CHECKPOINT, checkpoint)
    check_all_read(cache)


def keeping_cache(checkpoint: Callable[..., Any], cache: Cache) -> Callable[..., Any]:
    """A layer's checkpointing that leaves the cache in the layer's arguments, from which transformers takes it.

    transformers takes it away because its own caches would be written again in the backward pass; this one is pure.
    """
    if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
        raise ValueError(
            "A shared prompt gets no gradient under reentrant checkpointing. Set gradient_checkpointing_kwargs: "
            "{use_reentrant: false}, or share_prompt to 'off'."
        )

    def run(layer: Any, *args: Any) -> Any:
        if not isinstance(layer, partial):
            return checkpoint(layer, *args)
        given = {name: cache for name in CACHE_NAMES if name in layer.keywords}
        return checkpoint(partial(layer.func, *layer.args, **{**layer.keywords, **given}), *args)

    return run


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are spread over processes (FSDP, DeepSpeed ZeRO-3)."""
    # By its class: parameters of FSDP2 are ordinary tensors as long as they are gathered.
    kinds = (FullyShardedDataParallel, FSDPModule)
    return any(isinstance(module, kinds) for module in model.modules()) or hasattr(next(model.parameters()), "ds_id")


class PromptPositions:
    """Records the position ids of prompts, and passes only the needed hidden states to the head."""

    def __init__(self) -> None:
        self.next: Tensor | None = None  # position of the next token of each prompt, (n,)

    def note(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder."""
        del decoder
        inputs = kwargs.get("inputs_embeds", args[0] if args else None)
        assert inputs is not None
        positions = kwargs.get("position_ids")
        if positions is None:  # the decoder counts columns
            self.next = torch.full((len(inputs),), inputs.shape[1], device=inputs.device)
        else:
            # (L,) per row, or one axis each for time, height and width; a fourth in front counts tokens for the mask.
            axes = positions[None] if positions.ndim == 2 else positions[-3:]
            last = axes.amax((0, 2))  # (n,) or (1,)
            self.next = (last + 1).expand(len(inputs))

    def shorten(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the decoder: two columns, of which a head scores one."""
        del decoder, args
        hidden = last_hidden_state(output)[:, -1:].expand(-1, 2, -1)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output


@contextmanager
def prompt_positions(model: nn.Module) -> Iterator[PromptPositions]:
    """Inside the block, a forward pass of `model` reads prompts."""
    positions = PromptPositions()
    decoder = decoder_of(model)
    handles = [
        decoder.register_forward_pre_hook(positions.note, with_kwargs=True),
        decoder.register_forward_hook(positions.shorten),
    ]
    try:
        yield positions
    finally:
        for handle in handles:
            handle.remove()
