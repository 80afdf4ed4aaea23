"""Attention over packed rows: a response sees its prompt and itself, and nothing of its siblings.

transformers looks up attention functions by the name in the model's config. The function of this module has a name of
its own. The config has that name only while an attention module of a decoder runs with a `PromptLayout`: masks,
generation, other passes and other models see the user's name and run the library's own function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from vgpo.focus import decoder_of

LAYOUT = "prompt_layout"  # the keyword argument with which a layout reaches the attention function
ATTENTION = "vgpo_prompt_layout"  # the name of that function in transformers' table
# Arguments of attention functions that bound, cap or add to the scores.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "sinks", "cu_seq_lens_q")
HOOKS = "vgpo_layout_hooks"  # the attribute of a decoder that has hooks; a copy of the decoder has a copy of them

# Graphs of one function, after which torch raises an error. Its own limit of 8 is too low: layouts of one block and of
# several need a graph each, times the precisions, and times which of query, key and value have gradients.
RECOMPILE_LIMIT = 64

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Block:
    """Neighbouring queries of one packed row that attend to neighbouring keys of it."""

    row: int
    queries: slice
    keys: slice
    causal: bool

    def of(self, heads: Tensor) -> Tensor:
        """The block's queries out of (n, H, L, ...); (1, H, q, ...)."""
        return heads[self.row : self.row + 1, :, self.queries]

    def keys_of(self, heads: Tensor) -> Tensor:
        """The block's keys out of (n, H, L, ...); (1, H, k, ...)."""
        return heads[self.row : self.row + 1, :, self.keys]


@dataclass(frozen=True)
class PromptLayout:
    """The layout of packed rows: a prompt, then the responses to it, then padding.

    Args:
        prompt_lengths: tokens of the prompt of each of n rows.
        response_lengths: tokens of each response, row by row.
        length: tokens of a row, padding included.
        device: where the rows are.
    """

    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[tuple[int, ...], ...]
    length: int
    device: torch.device

    @cached_property
    def blocks(self) -> list[Block]:
        """All that is attended to: each stretch itself, in triangles that no two have a token in common, and then
        the responses of a row their prompt, in one rectangle."""
        blocks = []
        for row, (prompt, responses) in enumerate(zip(self.prompt_lengths, self.response_lengths, strict=True)):
            end = 0
            for length in (prompt, *responses):
                own = slice(end, end + length)
                end += length
                blocks.append(Block(row, own, own, causal=True))
            blocks.append(Block(row, slice(prompt, end), slice(0, prompt), causal=False))
        return [block for block in blocks if block.keys.stop > block.keys.start]

    def clear_padding(self, heads: Tensor) -> None:
        """Write zeros after the last token of each row of (n, H, L, D)."""
        for row, (prompt, responses) in enumerate(zip(self.prompt_lengths, self.response_lengths, strict=True)):
            heads[row, :, prompt + sum(responses) :] = 0

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same for FlexAttention over the rows laid end to end: (n L) x (n L) in blocks of 128 x 128 tokens."""
        owner = torch.full((len(self.prompt_lengths), self.length), -1)
        for row, (prompt, responses) in enumerate(zip(self.prompt_lengths, self.response_lengths, strict=True)):
            owners = torch.repeat_interleave(torch.tensor([prompt, *responses]))
            owner[row, : len(owners)] = owners
        rows = torch.arange(len(owner)).repeat_interleave(self.length).to(self.device)
        owner = owner.flatten().to(self.device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del batch, head
            own = (owner[key] == 0) | (owner[key] == owner[query])
            return own & (rows[key] == rows[query]) & (key <= query)

        # Compiled, the rule is evaluated block by block, and the mask of all tokens by all is never written.
        make = compiled(create_block_mask) if self.device.type == "cuda" else create_block_mask
        return make(sees, None, None, owner.numel(), owner.numel(), device=self.device)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled as one graph: it fails where it cannot be, and never runs uncompiled unannounced."""
    return torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)(
        torch.compile(function, dynamic=True, fullgraph=True)
    )


class BlockAttention(torch.autograd.Function):
    """Exact attention block by block on a CPU, with the flash kernels of torch.

    Blocks that share queries are merged by their log-sum-exp. Backwards, each block needs no more than the merged
    output and log-sum-exp of its queries: exp(score - log-sum-exp) is then its share of the whole softmax.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PromptLayout, scale: float) -> Tensor:
        # In memory (n, L, H, D), as the model's output projection wants it.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        total = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        layout.clear_padding(out)
        for block in layout.blocks:
            part, part_total = _flash(
                block.of(query), block.keys_of(key), block.keys_of(value), is_causal=block.causal, scale=scale
            )
            if block.causal:
                block.of(out).copy_(part)
                block.of(total).copy_(part_total)
            else:
                share = torch.sigmoid(part_total - block.of(total)).unsqueeze(-1).to(out.dtype)
                block.of(out).lerp_(part, share)
                block.of(total).copy_(torch.logaddexp(block.of(total), part_total))
        ctx.save_for_backward(query, key, value, out, total)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        sums = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for whole in sums:
            ctx.layout.clear_padding(whole)
        for block in ctx.layout.blocks:
            parts = _flash_backward(
                block.of(grads[0]), block.of(query), block.keys_of(key), block.keys_of(value), block.of(out),
                block.of(total), 0.0, block.causal, scale=ctx.scale,
            )  # fmt: skip
            places = block.of(sums[0]), block.keys_of(sums[1]), block.keys_of(sums[2])
            for place, part in zip(places, parts, strict=True):
                if block.causal:
                    place.copy_(part)
                else:
                    place.add_(part)
        return (*sums, None, None)


# A compiled model calls this as it is: every batch has a layout of its own, which would be compiled anew.
@torch.compiler.disable
def attend(query: Tensor, key: Tensor, value: Tensor, layout: PromptLayout, scale: float) -> Tensor:
    """Attention of packed rows.

    Args:
        query: (n, H, L, D).
        key: (n, H or fewer, L, D), each head shared by neighbouring query heads.
        value: as `key`.
        layout: of the packed rows.
        scale: factor on the scores.

    Returns:
        (n, L, H, D).

    Raises:
        ValueError: if there are other keys than the layout's tokens, as with a learnt prefix.
    """
    if key.shape[2] != layout.length:
        raise ValueError(f"Attention over {key.shape[2]} keys, expected the {layout.length} tokens of packed rows.")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    repeats = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(repeats, dim=1) if repeats > 1 else heads for heads in (key, value))
    query, key, value = (heads.to(dtype) for heads in (query, key, value))
    if device == "cpu":
        return BlockAttention.apply(query, key, value, layout, scale).transpose(1, 2)
    return attend_end_to_end(query, key, value, layout, scale)


def attend_end_to_end(query: Tensor, key: Tensor, value: Tensor, layout: PromptLayout, scale: float) -> Tensor:
    """As `attend`, on a GPU: one row of all rows, so that FlexAttention is compiled once for a shape of one kind."""
    ends = (heads.transpose(0, 1).flatten(1, 2).unsqueeze(0) for heads in (query, key, value))
    out = compiled(flex_attention)(*ends, block_mask=layout.block_mask, scale=scale)
    return out.squeeze(0).unflatten(1, (-1, layout.length)).permute(1, 2, 0, 3)


def layout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt_layout: PromptLayout,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers' attention functions.

    Raises:
        ValueError: the call has an argument that would change what a token attends to.
    """
    del module, attention_mask
    if dropped := sorted(name for name in UNSUPPORTED if kwargs.get(name) is not None):
        raise ValueError(
            f"An attention layer is called with {', '.join(dropped)}, which attention over shared prompts does not "
            "compute. Set share_prompt to 'off'."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, prompt_layout, scale), None


AttentionInterface.register(ATTENTION, layout_attention)


class LayoutHooks:
    """Forward hooks of attention modules: calls with a `PromptLayout` run `layout_attention`.

    They stay on the modules, since gradient checkpointing runs an attention module again in the backward pass, after
    `packed_rows` has ended.
    """

    def __init__(self) -> None:
        self.usual: str | None = None

    def enter(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        del args
        if LAYOUT in kwargs:
            self.usual = attention.config._attn_implementation
            attention.config._attn_implementation = ATTENTION

    def leave(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook."""
        del args, output
        if LAYOUT in kwargs:
            attention.config._attn_implementation = self.usual


def attention_modules(decoder: nn.Module) -> list[nn.Module]:
    """The attention module of each layer of a text decoder."""
    return [module for name, module in decoder.named_modules() if name.split(".")[-1] == "self_attn"]


def enable_layouts(model: nn.Module) -> None:
    """Let the decoder of a model take packed rows. A second call changes nothing."""
    decoder = decoder_of(model)
    if HOOKS in vars(decoder):
        return
    hooks = vars(decoder)[HOOKS] = LayoutHooks()
    for attention in attention_modules(decoder):
        attention.register_forward_pre_hook(hooks.enter, with_kwargs=True)
        # Always: checkpointing ends a recomputation by an exception as soon as it has all that it needs.
        attention.register_forward_hook(hooks.leave, with_kwargs=True, always_call=True)
