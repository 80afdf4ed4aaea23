"""Shared prompts with other attention functions than sdpa: eager, and flash attention by a stand-in for its kernels.

Flash attention gets keys and values of prompt and response, queries of the response alone, and no dense mask. The
kernels align the last query with the last key, which the stand-in does in float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, modeling_flash_attention_utils

from tests.shared_prompt.test_families import Case, assert_outputs, build_case, gradients_of, shared_rows

pytest_plugins = ["tests.families.fixtures"]

FAMILIES = ("qwen2_5_vl", "internvl", "gemma3")
FLASH = {"text_config": "flash_attention_2", "vision_config": "sdpa"}


def flash(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), **kwargs: Any,
) -> Tensor:  # fmt: skip
    """flash_attn_func: (rows, tokens, heads, size); a window is that of tokens before a query."""
    del kwargs
    distance = torch.arange(k.shape[1]) - torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
    mask = (distance <= 0) | (not causal)
    if window_size[0] >= 0:
        mask &= distance >= -window_size[0]
    heads = (tensor.transpose(1, 2) for tensor in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=mask, scale=softmax_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **kwargs: Any
) -> Tensor:
    """flash_attn_varlen_func: concatenated rows of different lengths."""
    queries, keys = (pairwise(ends.tolist()) for ends in (cu_seqlens_q, cu_seqlens_k))
    rows = zip(queries, keys, strict=True)
    return torch.cat([flash(q[None, a:b], k[None, c:d], v[None, c:d], **kwargs)[0] for (a, b), (c, d) in rows])


@pytest.fixture
def flash_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = modeling_flash_attention_utils
    functions = (flash, flash_varlen, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)


def case_of(family_folder: Callable[[str], Path], family: str, implementation: Any) -> Case:
    def load(name: str, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
        path = family_folder(name)
        model = AutoModelForImageTextToText.from_pretrained(path, attn_implementation=implementation)
        return model, AutoProcessor.from_pretrained(path)

    return build_case(load, family, torch.device("cpu"), torch.float32)


def check(case: Case) -> None:
    outputs = shared_rows(case, case.responses)
    assert_outputs(case, outputs, case.expected)
    (outputs.logprobs * case.weights).sum().backward()
    for name, gradient in gradients_of(case.model).items():
        expected = case.gradients[name]
        assert (gradient - expected).norm() <= 1e-4 * expected.norm().clamp(min=1e-2), name


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention(family: str, family_folder: Callable[[str], Path]) -> None:
    check(case_of(family_folder, family, "eager"))


@pytest.mark.usefixtures("flash_on_a_cpu")
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention(family: str, family_folder: Callable[[str], Path]) -> None:
    case = case_of(family_folder, family, FLASH)
    assert case.model.get_decoder().config._attn_implementation == "flash_attention_2"
    check(case)
