"""Cache layers that keep the autograd graph: they record a prompt's states, and provide them to its responses.

transformers' own layers write into buffers, or append to what they hold whenever they are called. Gradient
checkpointing calls a decoder layer a second time in the backward pass. So the layers here are pure: a second call
with the same tensors returns the same and changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

States = tuple[Tensor, ...]  # of one layer: keys and values (n, H, P, D), or convolution and recurrent state (n, ...)
LINEAR_LAYERS = ("linear_attention",)


class PureLayer(CacheLayerMixin):
    """Base of the cache layers in this module."""

    is_sliding = False

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self.length = length
        self.was_read = False

    def lazy_initialization(self, *args: Any) -> None:
        """There is nothing to initialize."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in older versions


class PromptLayer(PureLayer):
    """Records the keys and values of prompts in an attention layer."""

    states: States | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> States:
        self.was_read = True
        self.states = self.states or (key_states, value_states)
        return key_states, value_states


class ResponseLayer(PureLayer):
    """Puts the keys and values of prompts before those of responses.

    Args:
        states: of each prompt, (1, H, P_i, D) each.
        owners: for each of b responses, its prompt.
        length: tokens of the longest prompt; shorter ones are padded on the left.
    """

    def __init__(self, states: Sequence[States], owners: Sequence[int], length: int) -> None:
        super().__init__(length)
        self.prompts = list(zip(*states, strict=True))  # keys, values
        self.owners = owners

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> States:
        self.was_read = True
        return self._after(self.prompts[0], key_states), self._after(self.prompts[1], value_states)

    def _after(self, prompts: Sequence[Tensor], own: Tensor) -> Tensor:
        padded = [F.pad(prompt, (0, 0, self.length - prompt.shape[-2], 0)) for prompt in prompts]
        return torch.cat([rows_of(padded, self.owners).to(own.dtype), own], dim=-2)


class PromptStateLayer(LinearAttentionCacheLayerMixin):
    """Records the convolution input and the recurrent state that prompts leave in a layer of linear attention."""

    def __init__(self) -> None:
        super().__init__()
        self.was_read = False
        self._conv: Tensor | None = None
        self._recurrent: Tensor | None = None

    @property
    def states(self) -> States | None:
        return None if self._conv is None or self._recurrent is None else (self._conv, self._recurrent)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to initialize."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, *, conv_kernel_size: int, **kwargs: Any
    ) -> Tensor:
        missing = max(0, conv_kernel_size - conv_states.shape[-1])
        conv_states = F.pad(conv_states, (missing, 0))
        if self._conv is None:
            self._conv = conv_states[..., -conv_kernel_size:]
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.was_read = True
        if self._recurrent is None:
            self._recurrent = recurrent_states
        return recurrent_states


class ResponseStateLayer(LinearAttentionCacheLayerMixin):
    """Continues responses from the states of their prompts in a layer of linear attention.

    Args:
        states: of each prompt, (1, ...) each.
        owners: for each of b responses, its prompt.
    """

    def __init__(self, states: Sequence[States], owners: Sequence[int]) -> None:
        super().__init__()
        self.was_read = False
        self.has_previous_state = {0: True}
        self.record_past = True  # otherwise a row of one token would be written into the state, in place
        conv, recurrent = (rows_of(prompts, owners) for prompts in zip(*states, strict=True))
        self.conv_states, self.recurrent_states = {0: conv}, {0: recurrent}

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to initialize."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        return torch.cat([self.conv_states[state_idx].to(conv_states.dtype), conv_states], dim=-1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.was_read = True
        return recurrent_states


def rows_of(prompts: Sequence[Tensor], owners: Sequence[int]) -> Tensor:
    """The states of prompts (1, ...) as rows of b responses, (b, ...)."""
    if len(prompts) == 1:
        return prompts[0].expand(len(owners), *prompts[0].shape[1:])
    return torch.cat([prompts[owner] for owner in owners])


def layer_kinds(text_config: PreTrainedConfig) -> list[str]:
    """The kind of each layer of a decoder."""
    kinds = getattr(text_config, "layer_types", None)
    return list(kinds) if kinds else ["full_attention"] * text_config.num_hidden_layers


def prompt_cache(text_config: PreTrainedConfig) -> Cache:
    """An empty cache that records the states of a pass over prompts."""
    kinds = layer_kinds(text_config)
    return Cache(layers=[PromptStateLayer() if kind in LINEAR_LAYERS else PromptLayer() for kind in kinds])


def response_cache(
    text_config: PreTrainedConfig, states: Sequence[Sequence[States]], owners: Sequence[int], length: int
) -> Cache:
    """A cache for a pass over responses, filled with the states of their prompts.

    Args:
        text_config: of the decoder.
        states: of each prompt, layer by layer; what follows the last layer is left out.
        owners: for each of b responses, its prompt.
        length: tokens of the longest prompt.
    """
    layers: list[Any] = []
    for kind, of_layer in zip(layer_kinds(text_config), zip(*states, strict=True), strict=False):
        is_linear = kind in LINEAR_LAYERS
        layers.append(ResponseStateLayer(of_layer, owners) if is_linear else ResponseLayer(of_layer, owners, length))
    return Cache(layers=layers)


def states_of_prompts(cache: Cache, lengths: Sequence[int]) -> list[list[States]]:
    """The states of each of n prompts in a `prompt_cache`, layer by layer; (1, ...) each.

    Args:
        cache: after a pass over prompts that are padded on the left.
        lengths: tokens of each prompt.
    """
    prompts: list[list[States]] = [[] for _ in lengths]
    for layer in cache.layers:
        # One split for all prompts: as many slices would make as many gradients of full size.
        parts = list(zip(*(state.split(1) for state in layer.states), strict=True))
        for own, part, length in zip(prompts, parts, lengths, strict=True):
            is_attention = isinstance(layer, PromptLayer)
            own.append(tuple(state[:, :, -length:] for state in part) if is_attention else part)
    return prompts


def check_all_read(cache: Cache) -> None:
    """Check that every layer has read the cache.

    Raises:
        RuntimeError: a layer did not, so that responses did not attend to their prompt in it.
    """
    unread = [i for i, layer in enumerate(cache.layers) if not layer.was_read]
    if unread:
        raise RuntimeError(
            f"Decoder layers {unread} did not read the cache that holds the prompt, so responses would not see it. "
            "Set share_prompt to 'off'."
        )
