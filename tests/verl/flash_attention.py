"""Flash attention for CPUs: dense attention under the names that transformers and verl look for."""

import torch
from torch import Tensor


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Packed (tokens, heads, size): no token sees another sequence."""
    parts = []
    for start, stop in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        own = (tensor[None, start:stop] for tensor in (q, k, v))
        parts.append(flash_attn_func(*own, softmax_scale=softmax_scale, causal=causal)[0])
    return torch.cat(parts)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """(rows, tokens, heads, size)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


def install() -> None:
    """Make `flash_attention_2` run, in the precision of its inputs."""
    from transformers import PreTrainedModel, modeling_flash_attention_utils
    from verl.models.transformers import glm4v, qwen2_vl

    functions = (flash_attn_func, flash_attn_varlen_func, None, None, None)
    modeling_flash_attention_utils._lazy_imports = lambda *args, **kwargs: functions
    PreTrainedModel._flash_attn_can_dispatch = lambda *args, **kwargs: True
    for module in (qwen2_vl, glm4v):
        module.flash_attn_varlen_func = flash_attn_varlen_func
        module._flash_supports_window_size = module._flash_supports_deterministic = False
        module._flash_use_top_left_mask = False
        module.fa_peft_integration_check = lambda q, k, v, target_dtype=None: (q, k, v)
