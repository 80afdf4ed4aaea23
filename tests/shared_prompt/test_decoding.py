"""Decoding from prompts that are kept once: the attention, the cache, and everything that stays unchanged."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tests.shared_prompt.test_generation import (
    EOS,
    PROMPTS,
    TEXT_PROMPTS,
    G,
    assert_same_rollouts,
    build_model,
    collate,
    generate,
    sampling,
)
from vgpo.shared_prompt import decoding, prefill_once
from vgpo.shared_prompt.decoding import PromptOnceLayer, attend, attend_once, flash_part, plain_part

ONCE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava_onevision", "smolvlm"]
N, HEADS, SHARED, WIDTH, LENGTH = 2, 4, 2, 8, 7  # prompts, query heads, key heads, their width, tokens of a prompt


@pytest.fixture(autouse=True)
def prompts_of_any_size(monkeypatch):
    monkeypatch.setattr(decoding, "SMALLEST", 1)


@pytest.fixture
def layers(monkeypatch):
    """The layers that decode from prompts kept once."""
    made = []
    init = PromptOnceLayer.__init__

    def note(layer, read):
        init(layer, read)
        made.append(layer)

    monkeypatch.setattr(PromptOnceLayer, "__init__", note)
    return made


def states(rows, tokens, dtype=torch.float32, width=WIDTH):
    return torch.randn(rows, SHARED, tokens, width).to(dtype)


def read_layer(dtype=torch.float32):
    layer = DynamicLayer()
    layer.update(states(N, LENGTH, dtype), states(N, LENGTH, dtype))
    return layer


@pytest.mark.parametrize("part", [flash_part, plain_part])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_both_parts_are_one_softmax(part, padded, dtype, limit, monkeypatch):
    monkeypatch.setattr(decoding, "flash_part", part)
    torch.manual_seed(0)
    layer = PromptOnceLayer(read_layer(dtype))
    for _ in range(5):
        own = layer.update(states(N * G, 1, dtype), states(N * G, 1, dtype))
    query = torch.randn(N * G, HEADS, 1, WIDTH).to(dtype)
    padding = torch.zeros(N, 1, 1, LENGTH).index_fill(-1, torch.arange(3), -torch.inf) if padded else None
    found = attend(query, layer, *own, padding, scale=0.5)
    prompt = [part.repeat_interleave(G, 0) for part in (layer.prompt_keys, layer.prompt_values)]
    key, value = (
        torch.cat(both, 2).repeat_interleave(HEADS // SHARED, 1).double() for both in zip(prompt, own, strict=True)
    )
    seen = torch.ones(LENGTH + 5, dtype=torch.bool)
    seen[: 3 * padded] = False
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key, value, attn_mask=seen.expand(1, 1, 1, -1), scale=0.5
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected.transpose(1, 2), atol=limit, rtol=0)


@pytest.mark.parametrize("part", [flash_part, plain_part])
def test_scores_of_16_bits_are_not_rounded(part):
    """A score of 300 and one of 300.5 are the same number in bfloat16."""
    query = torch.tensor([1.0, 1.0] + [0.0] * 6, dtype=torch.bfloat16).view(1, 1, 1, 8)
    key = torch.zeros(1, 1, 2, 8, dtype=torch.bfloat16)
    key[0, 0, :, 0], key[0, 0, 1, 1] = 300, 0.5
    value = torch.tensor([[0.0] * 8, [1.0] * 8], dtype=torch.bfloat16).view(1, 1, 2, 8)
    out, total = part(query, key, value, None, 1.0)
    assert out[0, 0, 0, 0].item() == pytest.approx(0.6225, abs=5e-3)
    assert total.dtype == torch.float32


def test_a_buffer_grows_and_keeps_what_it_holds():
    torch.manual_seed(0)
    layer = PromptOnceLayer(read_layer())
    added = [(states(N * G, 1), states(N * G, 1)) for _ in range(2 * decoding.FIRST_ROOM + 1)]
    rooms = set()
    for number, (key, value) in enumerate(added, 1):
        found = layer.update(key, value)
        rooms.add(layer.keys.shape[2])
        assert layer.get_seq_length() == LENGTH + number
    assert rooms == {decoding.FIRST_ROOM, 2 * decoding.FIRST_ROOM, 4 * decoding.FIRST_ROOM}
    for whole, parts in zip(found, zip(*added, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts, 2))


def test_tokens_that_are_taken_back_are_written_over():
    layer = PromptOnceLayer(read_layer())
    layer.update(states(N * G, 3), states(N * G, 3))
    layer.crop(-2)
    last = states(N * G, 1)
    found, _ = layer.update(last, last)
    assert (layer.get_seq_length(), layer.get_mask_sizes(1)) == (LENGTH + 2, (LENGTH + 3, 0))
    assert torch.equal(found[:, :, 1:], last)


@pytest.mark.parametrize("name", ONCE)
def test_the_states_of_a_prompt_are_kept_once(name, layers):
    model = build_model(name)
    rows = []
    with prefill_once(model):
        handle = model.register_forward_hook(
            lambda *_: rows.extend((len(layer.prompt_keys), len(layer.keys)) for layer in layers[-1:])
        )
        generate(model, collate(name, PROMPTS), sampling(min_new_tokens=4, num_return_sequences=G))
        handle.remove()
    kinds = model.config.get_text_config().to_dict().get("layer_types") or ["full_attention"] * 2
    assert len(layers) == kinds.count("full_attention")
    assert set(rows) == {(len(PROMPTS), len(PROMPTS) * G)}
    assert all(layer.prompt_keys is None for layer in layers), "states outlive the block"


def test_a_sliding_window_is_left_to_transformers(layers):
    assert_same_rollouts(build_model("gemma3"), "gemma3", PROMPTS)
    assert not layers


def test_short_prompts_are_repeated(layers, monkeypatch):
    monkeypatch.setattr(decoding, "SMALLEST", 10**6)
    assert_same_rollouts(build_model("qwen2_5_vl"), "qwen2_5_vl", PROMPTS)
    assert not layers


def test_a_family_that_was_not_tried_repeats_prompts(layers, monkeypatch):
    monkeypatch.setattr(decoding, "FAMILIES", {"qwen3_vl"})
    assert_same_rollouts(build_model("qwen2_5_vl"), "qwen2_5_vl", PROMPTS)
    assert not layers


def test_bfloat16(layers):
    """Logits of the first tokens, which do not depend on what was drawn."""
    model = build_model("qwen2_5_vl").to(torch.bfloat16)
    inputs = collate("qwen2_5_vl", PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    options = {"eos_token_id": EOS, "suppress_tokens": [i for i in range(64) if i != 40], "max_new_tokens": 40}
    expected = generate(model, inputs, sampling(**options))
    with prefill_once(model):
        found = generate(model, inputs, sampling(**options, num_return_sequences=G))
    assert layers
    logits = torch.stack(found.logits)[:, ::G].float()
    torch.testing.assert_close(logits, torch.stack(expected.logits).float(), atol=0.15, rtol=0.05)


def test_autocast():
    model = build_model("qwen2_5_vl")
    inputs = collate("qwen2_5_vl", PROMPTS)
    options = {"suppress_tokens": [i for i in range(64) if i != 40]}
    with torch.autocast("cpu", torch.bfloat16):
        expected = generate(model, inputs, sampling(**options))
        with prefill_once(model):
            found = generate(model, inputs, sampling(**options, num_return_sequences=G))
    logits = torch.stack(found.logits)[:, ::G].float()
    torch.testing.assert_close(logits, torch.stack(expected.logits).float(), atol=0.15, rtol=0.05)


def configs_of(model):
    text = model.model.language_model.config
    return text._attn_implementation, model.config.vision_config._attn_implementation


def test_only_the_decoder_attends_in_another_way_and_only_while_it_decodes(layers):
    model = build_model("qwen2_5_vl")
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(configs_of(model)))
    with prefill_once(model):
        for _ in range(2):
            generate(
                model,
                collate("qwen2_5_vl", PROMPTS),
                sampling(min_new_tokens=3, max_new_tokens=3, num_return_sequences=G),
            )
        assert configs_of(model) == (decoding.ATTENTION, "sdpa")
    one = [("sdpa", "sdpa"), *[(decoding.ATTENTION, "sdpa")] * 2]
    assert seen == one * 2
    assert configs_of(model) == ("sdpa", "sdpa")


def test_a_model_is_as_before_after_an_error_while_it_decodes(layers, monkeypatch):
    model = build_model("qwen2_5_vl")
    monkeypatch.setattr(decoding, "attend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), prefill_once(model):
        generate(model, collate("qwen2_5_vl", PROMPTS), sampling(num_return_sequences=G))
    assert configs_of(model) == ("sdpa", "sdpa")
    assert layers[0].prompt_keys is None


def test_eager_attention(layers):
    model = build_model("qwen2_5_vl")
    model.set_attn_implementation("eager")
    assert_same_rollouts(model, "qwen2_5_vl", PROMPTS)
    assert layers


def test_a_model_with_an_adapter(layers):
    adapted = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    assert_same_rollouts(get_peft_model(build_model("qwen2_5_vl"), adapted).eval(), "qwen2_5_vl", PROMPTS)
    assert layers


def test_many_tokens(layers, monkeypatch):
    monkeypatch.setattr(decoding, "FIRST_ROOM", 2)
    assert_same_rollouts(build_model("qwen3_vl"), "qwen3_vl", TEXT_PROMPTS, max_new_tokens=20)
    assert layers[0].num_added == 19


def test_a_cache_that_was_returned_is_not_used_again(layers):
    model = build_model("qwen2_5_vl")
    with prefill_once(model):
        cache = generate(model, collate("qwen2_5_vl", PROMPTS), sampling(num_return_sequences=G)).past_key_values
    assert isinstance(cache, DynamicCache)
    with pytest.raises(RuntimeError, match="start a new one"):
        cache.update(states(N * G, 1), states(N * G, 1), 0)


@pytest.mark.parametrize(("name", "value"), [("s_aux", torch.zeros(2)), ("softcap", 3.0), ("dropout", 0.1)])
def test_an_argument_that_would_change_the_result_is_refused(name, value):
    with pytest.raises(ValueError, match=f"attends with {name}"):
        attend_once(SimpleNamespace(layer_idx=0), None, None, None, None, **{name: value})
