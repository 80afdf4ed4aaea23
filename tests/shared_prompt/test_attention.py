"""Attention over packed rows against a softmax over a dense mask, which is written here once more and apart."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vgpo.shared_prompt import attention, enable_layouts, pack_prompts, packed_rows
from vgpo.shared_prompt.attention import (
    ATTENTION,
    BlockAttention,
    PromptLayout,
    attend,
    attend_end_to_end,
    layout_attention,
)

HEADS, HEAD_DIM = 4, 16  # FlexAttention on CUDA takes no heads narrower than 16
SCALE = HEAD_DIM**-0.5
LAYOUTS = {
    "ragged": PromptLayout((6, 3, 5), ((4, 1, 3), (7,), (2, 2)), 16, torch.device("cpu")),
    "one-group": PromptLayout((9,), ((3, 5, 1, 4),), 22, torch.device("cpu")),
    "one-token-prompts": PromptLayout((0, 4), ((3, 2), (1, 1, 1)), 9, torch.device("cpu")),
    "one-token-responses": PromptLayout((5, 2), ((1, 1, 1), (1,)), 8, torch.device("cpu")),
    # Longer than a block of the flash kernels and of FlexAttention.
    "long": PromptLayout((300, 40), ((70, 130), (33, 200, 1)), 520, torch.device("cpu")),
}
ALL = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
SHORT = pytest.mark.parametrize("layout", list(LAYOUTS.values())[:4], ids=list(LAYOUTS)[:4])


def on(device: torch.device, layout: PromptLayout) -> PromptLayout:
    return dataclasses.replace(layout, device=device)


def dense_mask(layout: PromptLayout) -> Tensor:
    """What each token sees, bool (n, L, L): tokens up to itself, of the prompt and of its own response."""
    mask = torch.zeros(len(layout.prompt_lengths), layout.length, layout.length, dtype=torch.bool)
    for row, (prompt, responses) in enumerate(zip(layout.prompt_lengths, layout.response_lengths, strict=True)):
        starts = [0, prompt]
        for length in responses:
            starts.append(starts[-1] + length)
        for start, end in pairwise(starts):
            for query in range(start, end):
                mask[row, query, :prompt] = True
                mask[row, query, start : query + 1] = True
                mask[row, query, query + 1 :] = False
    return mask.to(layout.device)


def real_tokens(layout: PromptLayout) -> Tensor:
    """Bool (n, L)."""
    lengths = [p + sum(r) for p, r in zip(layout.prompt_lengths, layout.response_lengths, strict=True)]
    return (torch.arange(layout.length) < torch.tensor(lengths)[:, None]).to(layout.device)


def naive_attention(query: Tensor, key: Tensor, value: Tensor, layout: PromptLayout, scale: float) -> Tensor:
    """Softmax over all that a token sees, (n, H, L, D); 0 for padding."""
    mask = dense_mask(layout)[:, None]
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)
    weights = torch.where(mask, (scores - scores.amax(-1, keepdim=True).nan_to_num(neginf=0)).exp(), 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30) @ value


def random_heads(layout: PromptLayout, dtype: torch.dtype, key_heads: int = HEADS, seed: int = 0) -> list[Tensor]:
    """Query, key, value and a gradient of the output, each (n, H, L, D) and each with a gradient of its own."""
    generator = torch.Generator().manual_seed(seed)
    n, L = len(layout.prompt_lengths), layout.length
    sizes = [(n, heads, L, HEAD_DIM) for heads in (HEADS, key_heads, key_heads, HEADS)]
    values = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [value.to(layout.device, dtype).requires_grad_() for value in values]


def with_gradients(function: Callable[..., Tensor], heads: list[Tensor]) -> list[Tensor]:
    """What a function makes of query, key and value, and their gradients."""
    *inputs, grad = heads
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.detach().to(out.dtype))]


@ALL
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_outputs_and_gradients_are_those_of_a_dense_mask(
    layout: PromptLayout, dtype: torch.dtype, tolerance: float
) -> None:
    heads = random_heads(layout, dtype)
    actual = with_gradients(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), heads)
    expected = with_gradients(lambda *qkv: naive_attention(*qkv, layout, SCALE), heads)
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=0, atol=tolerance)


@SHORT
def test_gradients_are_those_of_finite_differences(layout: PromptLayout) -> None:
    heads = random_heads(layout, torch.float64)[:3]
    torch.autograd.gradcheck(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), heads, fast_mode=True)


@ALL
def test_padding_gives_nothing_and_feels_nothing(layout: PromptLayout) -> None:
    padding = ~real_tokens(layout)
    heads = random_heads(layout, torch.float32)
    plain = with_gradients(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), heads)
    poisoned = [head.detach().masked_fill(padding[:, None, :, None], math.nan).requires_grad_() for head in heads]
    for value, other in zip(
        plain, with_gradients(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), poisoned), strict=True
    ):
        assert torch.equal(other, value)
        assert (value.transpose(1, 2)[padding] == 0).all()


@ALL
@pytest.mark.parametrize("key_heads", [1, 2, HEADS])
def test_key_heads_are_shared_by_neighbouring_query_heads(
    layout: PromptLayout, key_heads: int, device: torch.device
) -> None:
    layout = on(device, layout)
    heads = random_heads(layout, torch.float32, key_heads)
    repeats = HEADS // key_heads
    actual = with_gradients(lambda *qkv: attend_tokens(*qkv, layout), heads)
    expected = with_gradients(
        lambda q, k, v: naive_attention(
            q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), layout, SCALE
        ),
        heads,
    )
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=0, atol=2e-5)


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, layout: PromptLayout) -> Tensor:
    """`attend` as (n, H, L, D), with 0 for padding, of which FlexAttention makes something."""
    padding = ~real_tokens(layout)
    return attend(query, key, value, layout, SCALE).transpose(1, 2).masked_fill(padding[:, None, :, None], 0)


@ALL
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_half_precision_is_as_near_as_half_precision_is(
    layout: PromptLayout, autocast: bool, device: torch.device
) -> None:
    """bf16 keeps 8 bits, so that one rounding errs by up to 0.4 %, and the norm of many by less."""
    layout = on(device, layout)
    heads = random_heads(layout, torch.float32 if autocast else torch.bfloat16)
    exact = [head.detach().double().requires_grad_() for head in heads]
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        actual = with_gradients(lambda *qkv: attend_tokens(*qkv, layout), heads)
    assert actual[0].dtype == torch.bfloat16
    expected = with_gradients(lambda *qkv: naive_attention(*qkv, layout, SCALE), exact)
    for value, head, reference in zip(actual, [actual[0], *heads], expected, strict=False):
        assert value.dtype == head.dtype
        assert (value.double() - reference).norm() <= 1e-2 * reference.norm()


@ALL
def test_a_response_feels_nothing_of_its_siblings(layout: PromptLayout) -> None:
    """Bit for bit, forwards and backwards; only what they share, the prompt, has a gradient of them all."""
    heads = random_heads(layout, torch.float32)
    others = random_heads(layout, torch.float32, seed=1)
    prompt, first = layout.prompt_lengths[0], layout.response_lengths[0][0]
    changed = torch.zeros(layout.length, dtype=torch.bool)
    changed[prompt : prompt + first] = True
    mixed = [
        torch.where(changed[None, None, :, None] & (torch.arange(len(head)) == 0)[:, None, None, None], other, head)
        .detach()
        .requires_grad_()
        for head, other in zip(heads, others, strict=True)
    ]
    before = with_gradients(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), heads)
    after = with_gradients(lambda *qkv: BlockAttention.apply(*qkv, layout, SCALE), mixed)
    for i, (value, other) in enumerate(zip(before, after, strict=True)):
        of_prompt = 0 if i < 2 else prompt  # of outputs and queries nothing, of keys and values the prompt is touched
        assert torch.equal(value[1:], other[1:])
        assert torch.equal(value[0, :, of_prompt:prompt], other[0, :, of_prompt:prompt])
        assert torch.equal(value[0, :, prompt + first :], other[0, :, prompt + first :])
        assert not torch.equal(value[0, :, changed], other[0, :, changed])


@ALL
def test_blocks_cover_what_is_seen_once(layout: PromptLayout) -> None:
    covered = torch.zeros(len(layout.prompt_lengths), layout.length, layout.length, dtype=torch.long)
    for block in layout.blocks:
        square = covered[block.row, block.queries, block.keys]
        square += torch.ones_like(square).tril() if block.causal else torch.ones_like(square)
    assert torch.equal(covered, dense_mask(layout).long())


@ALL
def test_the_rule_of_flex_attention_is_the_same(layout: PromptLayout) -> None:
    """Over the rows laid end to end, of which none sees another."""
    tokens = real_tokens(layout).flatten()
    query, key = torch.meshgrid(torch.arange(len(tokens)), torch.arange(len(tokens)), indexing="ij")
    seen = layout.block_mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key)
    assert torch.equal(seen[tokens], torch.block_diag(*dense_mask(layout))[tokens].bool())


@ALL
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # it is slow here, and right
def test_rows_end_to_end_attend_alike(layout: PromptLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "compiled", lambda function: function)
    heads = [head.detach() for head in random_heads(layout, torch.float32)[:3]]
    tokens = real_tokens(layout)
    out = attend_end_to_end(*heads, layout, SCALE)
    torch.testing.assert_close(out[tokens], attend(*heads, layout, SCALE)[tokens], rtol=0, atol=1e-5)


@pytest.fixture
def num_compiled(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often anything in `attention` has been compiled; on a CPU, where inductor is slow, to the graph alone."""
    counter = CompileCounter() if device.type == "cpu" else CompileCounterWithBackend("inductor")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    attention.compiled.cache_clear()
    yield lambda: counter.frame_count
    attention.compiled.cache_clear()


@torch._dynamo.config.patch(recompile_limit=1)
def test_flex_attention_is_compiled_a_bounded_number_of_times(
    device: torch.device, num_compiled: Callable[[], int]
) -> None:
    """Over 20 layouts, each with and without gradients, as in a training whose old policy is scored too.

    On CUDA the mask is compiled too, and the backward pass, which FlexAttention lacks on a CPU. The limit of torch,
    at which a function that must be one graph fails, has no effect.
    """
    counts = []
    for size in range(1, 21):
        rows = 1 + size % 3
        layout = PromptLayout((3 * size,) * rows, ((size, 2 * size + 1),) * rows, 6 * size + 1, device)
        *heads, grad = [head.detach() for head in random_heads(layout, torch.float32)]
        expected = naive_attention(*heads, layout, SCALE).transpose(1, 2)
        for training in (False, True):
            heads = [head.requires_grad_(training and device.type == "cuda") for head in heads]
            with torch.set_grad_enabled(training):
                out = attend_end_to_end(*heads, layout, SCALE)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            if out.requires_grad:
                torch.autograd.grad(out, heads, grad.transpose(1, 2))
        counts.append(num_compiled())
    # By the tenth, one row and several, of one block and of several, have been seen.
    assert 0 < counts[-1] == counts[9] <= (6 if device.type == "cpu" else 12)


def build_model(seed: int = 0) -> Qwen2ForCausalLM:
    """A text model of two layers."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    return build_model()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name under which each call of an attention module has looked up its function."""
    names: list[str] = []
    get_interface = AttentionInterface.get_interface

    def note(table: AttentionInterface, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        names.append(name)
        return get_interface(table, name, default)

    monkeypatch.setattr(AttentionInterface, "get_interface", note)
    return names


ROWS = torch.arange(2 * 9).view(2, 9) % 7 + 1  # two rows of a prompt of five tokens and a response of four
ROWS[1, :5] = ROWS[0, :5]


def packed_states(model: Qwen2ForCausalLM) -> Tensor:
    packing = pack_prompts(torch.ones_like(ROWS), 5, [0, 0])
    inputs = {"input_ids": packing.pack(ROWS), "attention_mask": packing.attention_mask, "use_cache": False}
    with packed_rows(model, packing):
        return model.model(**inputs).last_hidden_state


def separate_states(model: Qwen2ForCausalLM) -> Tensor:
    return model.model(input_ids=ROWS).last_hidden_state[:, 4:]


def gradients(model: Qwen2ForCausalLM, states: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter, of a sum in which every number has a weight of its own."""
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def test_a_packed_pass_gives_what_separate_rows_give(model: Qwen2ForCausalLM, names: list[str]) -> None:
    expected = separate_states(model)
    enable_layouts(model)
    torch.testing.assert_close(packed_states(model), expected, rtol=0, atol=1e-5)
    assert names == ["sdpa", "sdpa", ATTENTION, ATTENTION]


def test_other_passes_run_the_librarys_function(model: Qwen2ForCausalLM, names: list[str]) -> None:
    before = model(input_ids=ROWS).logits
    tokens = model.generate(ROWS, max_new_tokens=3, do_sample=False)
    enable_layouts(model)
    packed_states(model)
    names.clear()
    assert torch.equal(model(input_ids=ROWS).logits, before)
    assert torch.equal(model.generate(ROWS, max_new_tokens=3, do_sample=False), tokens)
    assert set(names) == {"sdpa"}
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_masks_are_made_under_the_users_name(model: Qwen2ForCausalLM) -> None:
    """The decoder makes them, and only its attention modules see another name."""
    enable_layouts(model)
    names = []
    for name, module in model.named_modules():
        if "self_attn" not in name:
            module.register_forward_pre_hook(lambda *call: names.append(model.config._attn_implementation))
            module.register_forward_hook(lambda *call: names.append(model.config._attn_implementation))
    packed_states(model)
    assert set(names) == {"sdpa"}


def test_layouts_are_enabled_once(model: Qwen2ForCausalLM, names: list[str]) -> None:
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    enable_layouts(model)
    states = packed_states(model)
    num_hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    enable_layouts(model)
    assert torch.equal(packed_states(model), states)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == num_hooks
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
    assert [name for name, function in functions.items() if function is layout_attention] == [ATTENTION]


def test_a_model_of_the_same_config_does_not_notice(names: list[str]) -> None:
    model = build_model()
    other = Qwen2ForCausalLM(model.config).eval()
    enable_layouts(model)
    packed_states(model)
    names.clear()
    other(input_ids=ROWS)
    assert set(names) == {"sdpa"}
    with pytest.raises(RuntimeError, match=r"size of tensor|expand|broadcast"):
        packed_states(other)


def test_a_copy_of_a_model_takes_packed_rows_too(model: Qwen2ForCausalLM, names: list[str]) -> None:
    enable_layouts(model)
    other = copy.deepcopy(model)
    enable_layouts(other)
    model.set_attn_implementation("eager")
    states = packed_states(other)
    assert other.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"
    assert set(names) == {ATTENTION}
    assert torch.equal(packed_states(model), states)
    assert model.config._attn_implementation == "eager"


def checkpoint_layers(model: Qwen2ForCausalLM) -> None:
    """As FSDP's own activation checkpointing does."""
    layers = model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)


def checkpoint_attention(model: Qwen2ForCausalLM) -> None:
    """The recomputation ends inside the attention modules, with the last tensor that the backward pass needs."""
    for layer in model.model.layers:
        layer.self_attn = checkpoint_wrapper(layer.self_attn)


def checkpoint_by_transformers(model: Qwen2ForCausalLM, *, use_reentrant: bool) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()  # a reentrant checkpoint of inputs without gradients gives none
    model.train()


CHECKPOINTING = {
    "non-reentrant": partial(checkpoint_by_transformers, use_reentrant=False),
    "reentrant": partial(checkpoint_by_transformers, use_reentrant=True),
    "layers": checkpoint_layers,
    "attention": checkpoint_attention,
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTING.values(), ids=CHECKPOINTING)
def test_what_is_computed_again_attends_alike(
    model: Qwen2ForCausalLM, names: list[str], checkpoint: Callable[[Qwen2ForCausalLM], None]
) -> None:
    """The backward pass runs the attention modules again, outside of `packed_rows`."""
    expected = gradients(model, separate_states(model))
    enable_layouts(model)
    stored = gradients(model, packed_states(model))
    checkpoint(model)
    names.clear()
    states = packed_states(model)
    assert names == [ATTENTION] * 2
    assert model.config._attn_implementation == "sdpa"
    found = {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in gradients(model, states).items()}
    assert names == [ATTENTION] * 4
    assert model.config._attn_implementation == "sdpa"
    assert found.keys() == stored.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, stored[name]), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_model_is_kept() -> None:
    layout = LAYOUTS["ragged"]
    heads = [head.detach() for head in random_heads(layout, torch.float32)[:3]]
    for given, scale in ((None, SCALE), (0.5, 0.5)):
        out, weights = layout_attention(nn.Identity(), *heads, None, scaling=given, dropout=0.0, prompt_layout=layout)
        assert weights is None
        expected = naive_attention(*heads, layout, scale).transpose(1, 2)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_knows_no_layouts_fails(model: Qwen2ForCausalLM, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    with pytest.raises(RuntimeError, match=r"size of tensor|expand|broadcast"):
        packed_states(model)


def test_the_hooks_are_gone_after_an_error(model: Qwen2ForCausalLM) -> None:
    before = model(input_ids=ROWS).logits
    with pytest.raises(RuntimeError):
        packed_states(model)
    assert torch.equal(model(input_ids=ROWS).logits, before)


def test_the_users_name_is_back_after_an_error(model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Tensor:
        raise MemoryError

    enable_layouts(model)
    monkeypatch.setattr(attention, "attend", fail)
    with pytest.raises(MemoryError):
        packed_states(model)
    assert model.config._attn_implementation == "sdpa"


def test_other_keys_than_the_layouts_are_refused() -> None:
    layout = LAYOUTS["ragged"]
    query, key, value, _ = random_heads(layout, torch.float32)
    with pytest.raises(ValueError, match="expected the 16 tokens"):
        attend(query, torch.cat([key, key], 2), torch.cat([value, value], 2), layout, SCALE)
