"""Decoding with the keys and values of a prompt kept once for all its rollouts.

After the prefill, a cache holds the states of each prompt once. Each rollout appends its own tokens to a preallocated
buffer, and attends to both parts in one softmax. transformers' loop is unchanged: the layers of its cache are
replaced, and its attention function during decoding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from vgpo.focus import decoder_of
from vgpo.shared_prompt.families import PROVEN

FAMILIES = PROVEN  # families whose rollouts the tests compare with those of repeated prompts
ATTENTION = "vgpo_prompts_once"  # the name of the attention function in transformers' tables
STATES = "prompts_once"  # the keyword argument with which `PromptsOnce` reaches it
KINDS = {DynamicLayer, LinearAttentionLayer}  # layers of a cache; a state of linear attention is one per rollout
UNSUPPORTED = ("dropout", "s_aux", "sinks", "sliding_window", "softcap", "position_bias")  # of an attention function
FIRST_ROOM = 64  # tokens for which a buffer has room at first
# Numbers in the prompt's keys of a layer, for all rollouts, from which to keep prompts once. Below, reading them costs
# less than a second call of the attention kernel (on a CPU, 8 rows and 17 million parameters: 3 % of a step).
SMALLEST = 2**17

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class PromptOnceLayer(DynamicLayer):
    """A cache layer with separate states for n prompts, and a preallocated buffer for the tokens of their rollouts.

    Args:
        read: the layer after the prompts were read; its keys and values are (n, K, P, D).
    """

    def __init__(self, read: DynamicLayer) -> None:
        super().__init__()
        self.prompt_keys: Any = read.keys  # of tensors, until they are freed
        self.prompt_values: Any = read.values
        self.num_added = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens of all rollouts, (n * G, K, t, D); returns all appended states, without the prompts."""
        if self.prompt_keys is None:
            raise RuntimeError(
                "A cache that generate() returned inside prefill_once() has been freed: start a new one."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        added = slice(self.num_added, self.num_added + key_states.shape[2])
        if added.stop > self.keys.shape[2]:
            room = max(added.stop, 2 * self.keys.shape[2], FIRST_ROOM)
            self.keys, self.values = (with_room(old, room) for old in (self.keys, self.values))
        self.keys[:, :, added], self.values[:, :, added] = key_states, value_states
        self.num_added = added.stop
        return self.keys[:, :, : added.stop], self.values[:, :, : added.stop]

    def get_seq_length(self) -> int:
        """Tokens of a rollout, its prompt included."""
        return self.prompt_keys.shape[2] + self.num_added

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last added tokens of each rollout, a number <= 0."""
        self.num_added -= abs(tokens_to_remove)

    def close(self) -> None:
        """Free all states."""
        self.keys = self.values = None  # type: ignore[assignment]  # as in the parent
        self.prompt_keys = self.prompt_values = None


def with_room(states: Tensor, room: int) -> Tensor:
    """The states (rows, H, t, D) at the start of a buffer (rows, H, room, D)."""
    buffer = states.new_empty(*states.shape[:2], room, states.shape[3])
    buffer[:, :, : states.shape[2]] = states
    return buffer


@dataclass(frozen=True)
class PromptsOnce:
    """The states that decoding attends to.

    Args:
        cache: with a `PromptOnceLayer` for each layer of the decoder that attends.
        padding: -inf at the padding of n prompts and 0 elsewhere, (n, 1, 1, P); None where no prompt is padded.
    """

    cache: DynamicCache
    padding: Tensor | None


def repeat_prompts(
    generator: Any, cache: DynamicCache, rows: Tensor, attention_mask: Tensor | None
) -> PromptsOnce | None:
    """Make a cache with n prompts serve all rollouts.

    Args:
        generator: the model that generates.
        cache: that read the prompts.
        rows: the prompt of each rollout, those of a prompt next to each other; (n * G,).
        attention_mask: of the prompts, (n, P).

    Returns:
        The states that decoding attends to if the cache keeps each prompt once; None if it repeats them.
    """
    once = can_keep_once(generator, cache, len(rows))
    for number, layer in enumerate(cache.layers):
        if once and type(layer) is DynamicLayer:
            cache.layers[number] = PromptOnceLayer(layer)
        else:
            layer.reorder_cache(rows)
    if not once:
        return None
    if attention_mask is None or attention_mask.all():
        return PromptsOnce(cache, None)
    padding = torch.zeros(attention_mask.shape, device=attention_mask.device)
    return PromptsOnce(cache, padding.masked_fill(attention_mask == 0, -torch.inf)[:, None, None])


def can_keep_once(generator: Any, cache: DynamicCache, num_rows: int) -> bool:
    """Whether decoding can share each prompt's states, and that is cheaper than repeating them."""
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    if generator.config.model_type not in FAMILIES or {type(layer) for layer in cache.layers} - KINDS or not layers:
        return False
    decoder: Any = decoder_of(generator)
    # Any model of text may be inside a model of images.
    if not decoder._can_set_attn_implementation() or getattr(decoder.config, "attn_logit_softcapping", None):
        return False
    return num_rows * layers[0].keys[0].numel() >= SMALLEST


def attend(
    query: Tensor, layer: PromptOnceLayer, key: Tensor, value: Tensor, padding: Tensor | None, scale: float
) -> Tensor:
    """Attention of one new token of each rollout to its prompt and to its own tokens.

    Args:
        query: (n * G, H, 1, D), rollouts of a prompt next to each other.
        layer: holds the states of the n prompts.
        key: of the rollouts' own tokens, (n * G, K, t, D), each head shared by H / K neighbouring query heads.
        value: as `key`.
        padding: see `PromptsOnce`.
        scale: factor on the scores.

    Returns:
        (n * G, 1, H, D).
    """
    dtype = value.dtype  # under autocast, queries and keys, and in torch 2.8 the stored values, are in float32
    part = flash_part if query.device.type == "cpu" else plain_part
    rows, shared = key.shape[:2]
    prompts = len(layer.prompt_keys)
    own_query = query.to(dtype).reshape(rows, shared, -1, query.shape[-1])  # (n * G, K, H / K, D)
    split = prompts, rows // prompts, *own_query.shape[1:3]  # (n, G, K, H / K)
    # The queries of a prompt's rollouts in one matrix: (n, K, G * H / K, D).
    query = own_query.view(*split, -1).transpose(1, 2).flatten(2, 3)
    bias = None if padding is None else padding.to(dtype)
    out, total = part(query, layer.prompt_keys.to(dtype), layer.prompt_values.to(dtype), bias, scale)
    own_out, own_total = part(own_query, key.to(dtype), value, None, scale)
    out = out.view(prompts, shared, *split[1::2], -1).transpose(1, 2)
    total = total.view(prompts, shared, *split[1::2]).transpose(1, 2)
    share = torch.sigmoid(total - own_total.view(split)).to(dtype)  # of the prompt, in the full softmax
    return own_out.view(*split, -1).lerp(out, share.unsqueeze(-1)).reshape(rows, 1, -1, out.shape[-1])


def flash_part(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, and the log-sum-exp of the scores, by torch's kernel for a CPU.

    Args:
        query: (B, K, q, D).
        key: (B, K, k, D).
        value: (B, K, k, D).
        bias: added to the scores, (B, 1, 1, k).
        scale: factor on the scores.

    Returns:
        (B, K, q, D) and (B, K, q), the latter at least in float32.
    """
    return _flash(query, key, value, attn_mask=bias, scale=scale)


def plain_part(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """As `flash_part`, on any device."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(dtype).mul(scale) @ key.to(dtype).mT
        scores = scores if bias is None else scores + bias
        total = scores.logsumexp(-1)
        return (scores - total.unsqueeze(-1)).exp().to(value.dtype) @ value, total


def attend_once(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers' attention functions, for one layer.

    Raises:
        ValueError: the call has an argument that would change the result.
    """
    del attention_mask
    given = {name: kwargs[name] for name in UNSUPPORTED if kwargs.get(name) is not None}
    if others := sorted(name for name, value in given.items() if isinstance(value, Tensor) or value):
        raise ValueError(
            f"{type(module).__name__} attends with {', '.join(others)}, which decoding from shared prompts does not "
            "compute. Set share_prompt to 'off'."
        )
    states: PromptsOnce = kwargs[STATES]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = states.cache.layers[module.layer_idx]
    return attend(query, layer, key, value, states.padding, scale), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Padding is at the left of prompts only, and `PromptsOnce` knows it."""


class AttentionSwitch:
    """Switches a model's decoder to `attend_once`, and back to the user's choice."""

    def __init__(self) -> None:
        self._states: PromptsOnce | None = None
        self._config: Any = None
        self._usual: str | None = None

    def on(self, model: nn.Module, states: PromptsOnce) -> None:
        """While tokens are decoded from `states`; of a model with a vision tower, only the decoder is switched."""
        self._states, self._config = states, decoder_of(model).config
        self._usual, self._config._attn_implementation = self._config._attn_implementation, ATTENTION

    def off(self) -> None:
        """Before a prompt is read, and at the end; frees the states."""
        if self._states is None:
            return
        self._config._attn_implementation = self._usual
        for layer in self._states.cache.layers:
            if isinstance(layer, PromptOnceLayer):
                layer.close()
        self._states = None


AttentionInterface.register(ATTENTION, attend_once)
# Without one, transformers warns and leaves masks out.
AttentionMaskInterface.register(ATTENTION, no_mask)
