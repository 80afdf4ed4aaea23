"""Prompts read once give the rollouts of prompts that were repeated, family by family, and cost one row each."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
)
from transformers.cache_utils import DynamicLayer

from vgpo.shared_prompt import decoding, generation
from vgpo.shared_prompt.generation import PrefillError, prefill_once, why_not_prefill_once

CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
# In older versions generate() itself slices the positions of M-RoPE by row, and encodes no image before the decoder.
AS_OF_5_23 = pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="needs transformers 5.23")
PAD, EOS, IMAGE, VOCABULARY = 0, 1, 5, 64
SIDE, PATCH, HIDDEN = 28, 7, 32
G = 3
NEW_TOKENS = 6

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}}
QWEN_VISION = {"depth": 2, "hidden_size": HIDDEN, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}


@dataclass(frozen=True)
class Prompt:
    """Question tokens around images, each of them three planes of SIDE x SIDE pixels."""

    question: list[int]
    pictures: list[Tensor]


def picture(seed: int) -> Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


PROMPTS = [
    Prompt(list(range(20, 27)), [picture(1), picture(2)]),
    Prompt(list(range(30, 33)), []),
    Prompt(list(range(40, 45)), [picture(3)]),
]
TEXT_PROMPTS = [Prompt(list(range(20, 27)), []), Prompt(list(range(30, 33)), [])]


def all_pictures(prompts: list[Prompt]) -> Tensor:
    return torch.stack([pixels for prompt in prompts for pixels in prompt.pictures])


def qwen_pictures(prompts: list[Prompt]) -> dict[str, Tensor]:
    pixels = all_pictures(prompts)
    side = SIDE // PATCH
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    frames = patches.reshape(len(pixels) * side**2, 3, 1, PATCH * PATCH).expand(-1, -1, 2, -1)
    return {"pixel_values": frames.flatten(1), "image_grid_thw": torch.tensor([[1, side, side]] * len(pixels))}


def stacked_pictures(prompts: list[Prompt]) -> dict[str, Tensor]:
    return {"pixel_values": all_pictures(prompts)}


def onevision_pictures(prompts: list[Prompt]) -> dict[str, Tensor]:
    """One crop and the complete image; the model takes the latter if a prompt has several images."""
    pixels = all_pictures(prompts)
    return {
        "pixel_values": torch.stack([pixels, pixels.flip(-1)], dim=1),
        "image_sizes": torch.tensor([[SIDE, SIDE]] * len(pixels)),
        "batch_num_images": torch.tensor([len(prompt.pictures) for prompt in prompts]),
    }


def padded_pictures(prompts: list[Prompt]) -> dict[str, Tensor]:
    most = max(len(prompt.pictures) for prompt in prompts)
    blank = torch.zeros(3, SIDE, SIDE)
    rows = [torch.stack(prompt.pictures + [blank] * (most - len(prompt.pictures))) for prompt in prompts]
    pixels = torch.stack(rows)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, :, 0], dtype=torch.bool)}


@dataclass(frozen=True)
class Family:
    """A family's config, and how its processor hands over images."""

    config: dict[str, Any]
    pictures: Callable[[list[Prompt]], dict[str, Tensor]]
    token_types: str | None = None
    visual_tokens: Callable[[int], int] = lambda num_pictures: 4


FAMILIES = {
    "qwen2_vl": Family(
        {
            "text_config": QWEN_TEXT,
            "vision_config": {**QWEN_VISION, "embed_dim": HIDDEN, "mlp_ratio": 2},
            **QWEN_IDS,
        },
        qwen_pictures,
        "mm_token_type_ids",
    ),
    "qwen2_5_vl": Family(
        {
            "text_config": QWEN_TEXT,
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": HIDDEN,
                "window_size": 2 * PATCH,
                "fullatt_block_indexes": [1],
            },
            **QWEN_IDS,
        },
        qwen_pictures,
        "mm_token_type_ids",
    ),
    "qwen3_vl": Family(
        {
            "text_config": QWEN_TEXT,
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IDS,
        },
        qwen_pictures,
        "mm_token_type_ids",
    ),
    "internvl": Family(
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            "image_token_id": IMAGE,
        },
        stacked_pictures,
    ),
    "llava_onevision": Family(
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {
                **VISION,
                "patch_size": SIDE // 2,
                "vision_use_head": False,
                "model_type": "siglip_vision_model",
            },
            "image_grid_pinpoints": [[SIDE, SIDE]],
            "image_token_index": IMAGE,
            "video_token_index": 6,
        },
        onevision_pictures,
        # Each of several images: 4 and a line break. A single one: 4, and its crop of 2 lines of 2 and a break.
        visual_tokens=lambda num_pictures: 10 if num_pictures == 1 else 5,
    ),
    "smolvlm": Family(
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": VISION, "image_token_id": IMAGE},
        padded_pictures,
    ),
    "qwen3_5": Family(
        {
            "text_config": {
                **TEXT,
                "layer_types": ["linear_attention", "full_attention"],
                "rope_parameters": {
                    **QWEN_TEXT["rope_parameters"],
                    "mrope_interleaved": True,
                    "partial_rotary_factor": 1.0,
                },
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 64,
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
            },
            **QWEN_IDS,
        },
        qwen_pictures,
        "mm_token_type_ids",
    ),
    # A sliding window shorter than the prompts, and images read in both directions.
    "gemma3": Family(
        {
            "text_config": {**TEXT, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": {**VISION, "vision_use_head": False},
            "image_token_index": IMAGE,
            "mm_tokens_per_image": 4,
        },
        stacked_pictures,
        "token_type_ids",
    ),
}


def build_model(name: str) -> nn.Module:
    """A tiny model with weights large enough for every token to depend on the whole prompt."""
    config = AutoConfig.for_model(name, **FAMILIES[name].config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture(autouse=True)
def prompts_of_any_size(monkeypatch):
    """Those of the tests are short."""
    monkeypatch.setattr(decoding, "SMALLEST", 1)


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def collate(name: str, prompts: list[Prompt]) -> dict[str, Tensor]:
    """What a family's processor makes of prompts: left-padded token ids with a run of IMAGE for every image."""
    family = FAMILIES[name]
    rows = []
    for prompt in prompts:
        picture_ids = [3, *[IMAGE] * family.visual_tokens(len(prompt.pictures)), 4]
        rows.append(torch.tensor([*picture_ids * len(prompt.pictures), *prompt.question]))
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side="left")
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if family.token_types is not None:
        inputs[family.token_types] = (ids == IMAGE).long()
    if any(prompt.pictures for prompt in prompts):
        inputs |= family.pictures(prompts)
    return inputs


def sampling(**options: Any) -> GenerationConfig:
    settings = {"do_sample": True, "max_new_tokens": NEW_TOKENS, "pad_token_id": PAD, "eos_token_id": EOS}
    return GenerationConfig(**settings | {"top_k": 0} | options)


def generate(model: nn.Module, inputs: dict[str, Tensor], config: GenerationConfig) -> Any:
    torch.manual_seed(7)
    config.output_logits = config.return_dict_in_generate = True
    return model.generate(**inputs, generation_config=config)


def repeated(prompts: list[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts for _ in range(G)]


def assert_same_rollouts(model: nn.Module, name: str, prompts: list[Prompt], **options: Any) -> Tensor:
    """Tokens equal and logits of every step close, shared against repeated; returns the repeated rows' tokens."""
    expected = generate(model, collate(name, repeated(prompts)), sampling(**options))
    with prefill_once(model):
        shared = generate(model, collate(name, prompts), sampling(**options, num_return_sequences=G))
    torch.testing.assert_close(torch.stack(shared.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    assert torch.equal(shared.sequences, expected.sequences)
    return expected.sequences


def test_rollouts_are_those_of_repeated_prompts(name):
    """Ragged prompts of two images, none and one."""
    assert_same_rollouts(build_model(name), name, PROMPTS)


def test_logits_depend_on_the_pictures_and_on_the_question(name):
    """Otherwise equal logits would say nothing about what the prompt left behind."""
    model = build_model(name)
    other = [Prompt(PROMPTS[0].question, [picture(1), picture(4)]), PROMPTS[1], PROMPTS[0]]
    logits = [torch.stack(generate(model, collate(name, p), sampling(top_k=1)).logits) for p in (PROMPTS, other)]
    moved = (logits[0] - logits[1]).abs().amax(dim=(0, 2))
    assert moved[0] > 0.1
    assert moved[1] < 1e-4
    assert moved[2] > 0.1


def test_text_only_prompts(name):
    assert_same_rollouts(build_model(name), name, TEXT_PROMPTS)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"suppress_tokens": list(range(32))},
        {"eos_token_id": list(range(1, 40)), "min_new_tokens": 4},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 12, "min_p": 0.01},
        {"top_k": 1},
        pytest.param({"prefill_chunk_size": 5}, marks=AS_OF_5_23),
    ],
    ids="-".join,
)
def test_what_shapes_sampling_does_as_with_repeated_prompts(options):
    model = build_model("qwen2_5_vl")
    plain = generate(model, collate("qwen2_5_vl", repeated(PROMPTS)), sampling()).sequences
    tokens = assert_same_rollouts(model, "qwen2_5_vl", PROMPTS, **options)
    assert options.keys() == {"prefill_chunk_size"} or not torch.equal(tokens, plain), "the setting had no effect"


def test_rows_that_end_early_are_padded():
    tokens = assert_same_rollouts(build_model("qwen2_5_vl"), "qwen2_5_vl", PROMPTS, eos_token_id=list(range(1, 30)))
    assert (tokens[:, -1] == PAD).any()


def test_each_prompt_is_read_by_one_row(name):
    model = build_model(name)
    inputs = collate(name, PROMPTS)
    decoder_rows, pixels = [], []

    def see_decoder(module, args, kwargs):
        decoder_rows.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    def see_vision(module, args, kwargs):
        pixels.append((args[0] if args else next(iter(kwargs.values()))).numel())

    model.get_decoder().register_forward_pre_hook(see_decoder, with_kwargs=True)
    model.get_encoder(modality="image").register_forward_pre_hook(see_vision, with_kwargs=True)
    generate(model, inputs, sampling(min_new_tokens=NEW_TOKENS))
    alone = list(pixels)
    decoder_rows.clear()
    pixels.clear()
    with prefill_once(model):
        generate(model, inputs, sampling(min_new_tokens=NEW_TOKENS, num_return_sequences=G))
    assert decoder_rows == [inputs["input_ids"].shape] + [(len(PROMPTS) * G, 1)] * (NEW_TOKENS - 1)
    assert pixels == alone
    assert len(alone) == 1


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_pictures_encoded_in_the_forward_pass(name, monkeypatch):
    """As by models that know nothing of images encoded beforehand."""
    model = build_model(name)
    monkeypatch.setattr(model, "_supports_mm_encoder_outputs", lambda: False, raising=False)
    assert_same_rollouts(model, name, PROMPTS)


@pytest.mark.parametrize("encoded_before", [pytest.param(True, marks=AS_OF_5_23), False])
def test_pictures_are_never_repeated(encoded_before, monkeypatch):
    model = build_model("qwen2_5_vl")
    monkeypatch.setattr(model, "_supports_mm_encoder_outputs", lambda: encoded_before, raising=False)
    forwards = []
    model.register_forward_pre_hook(lambda module, args, kwargs: forwards.append(kwargs), with_kwargs=True)
    inputs = collate("qwen2_5_vl", PROMPTS)
    with prefill_once(model):
        generate(model, inputs, sampling(num_return_sequences=G))
    first, *later = forwards
    if encoded_before:
        assert len(first["mm_encoder_outputs"]["image"].pooler_output) == 3
    else:
        assert first["pixel_values"] is inputs["pixel_values"]
    images = ("mm_encoder_outputs", "pixel_values", "image_grid_thw")
    assert all(kwargs.get(name) is None for kwargs in later for name in images)


def test_model_is_as_before_after_the_block():
    model = build_model("qwen2_5_vl")
    before = dict(vars(model))
    with prefill_once(model):
        assert dict(vars(model)) != before
    assert dict(vars(model)) == before


def test_model_is_as_before_after_an_exception():
    model = build_model("qwen2_5_vl")
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt), prefill_once(model):
        raise KeyboardInterrupt
    assert dict(vars(model)) == before


def test_lora_adapter():
    adapted = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    plain = generate(build_model("qwen2_5_vl"), collate("qwen2_5_vl", repeated(PROMPTS)), sampling()).sequences
    model = get_peft_model(build_model("qwen2_5_vl"), adapted).eval()
    tokens = assert_same_rollouts(model, "qwen2_5_vl", PROMPTS)
    assert not torch.equal(tokens, plain), "the adapter had no effect"


@pytest.mark.parametrize("options", [{}, {"do_sample": False}, {"cache_implementation": "static"}], ids="-".join)
def test_one_rollout_is_left_alone(options):
    model = build_model("qwen2_5_vl")
    rollouts = []
    for block in (nullcontext(), prefill_once(model)):
        with block:
            rollouts.append(generate(model, collate("qwen2_5_vl", PROMPTS), sampling(**options)))
    assert torch.equal(rollouts[0].sequences, rollouts[1].sequences)
    assert torch.equal(torch.stack(rollouts[0].logits), torch.stack(rollouts[1].logits))


REFUSED = {
    "static cache": ({"cache_implementation": "static"}, "cache_implementation is 'static'"),
    "beams": ({"num_beams": G}, "beam_sample"),
    "beams, greedy": ({"num_beams": G, "do_sample": False}, "beam_search"),
    "no cache": ({"use_cache": False}, "use_cache is false"),
    "penalty by prompt": ({"encoder_repetition_penalty": 0.5}, "encoder_repetition_penalty"),
    "n-grams by prompt": ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_is_refused(case):
    model = build_model("qwen2_5_vl")
    options, reason = REFUSED[case]
    assert reason in why_not_prefill_once(model, sampling(**options))
    with prefill_once(model), pytest.raises(ValueError, match=reason):
        generate(model, collate("qwen2_5_vl", PROMPTS), sampling(**options, num_return_sequences=G))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"do_sample": False}, "greedy_search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
        ({"cache_implementation": "quantized"}, "cache_implementation is 'quantized'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation is 'offloaded'"),
    ],
    ids="-".join,
)
def test_refused_before_generation(options, reason):
    assert reason in why_not_prefill_once(build_model("qwen2_5_vl"), sampling(**options))


def test_own_settings_of_the_model_are_asked_as_well():
    model = build_model("qwen2_5_vl")
    assert why_not_prefill_once(model, sampling()) is None
    model.generation_config.use_cache = False
    assert "use_cache" in why_not_prefill_once(model, sampling())


@pytest.mark.parametrize("kind", ["static", "filled"])
def test_cache_that_is_passed_in_is_refused(kind):
    model = build_model("qwen2_5_vl")
    if kind == "static":
        cache, reason = StaticCache(model.config, max_cache_len=64), "the cache is a StaticCache"
    else:
        cache, reason = DynamicCache(), "already holds 4 tokens"
        cache.update(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8), 0)
    inputs = collate("qwen2_5_vl", TEXT_PROMPTS[:1])
    config = sampling(num_return_sequences=G)
    with prefill_once(model), pytest.raises(ValueError, match=reason):
        model.generate(**inputs, **{CACHE: cache}, generation_config=config)


def test_layers_of_an_unknown_kind_are_refused(monkeypatch):
    model = build_model("qwen3_5")
    assert why_not_prefill_once(model, sampling()) is None
    monkeypatch.setattr(generation, "_LAYERS", {DynamicLayer})
    assert "(LinearAttentionLayer)" in why_not_prefill_once(model, sampling())


def test_states_of_a_short_convolution_are_repeated():
    config = AutoConfig.for_model("lfm2", **TEXT, layer_types=["conv", "full_attention"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[PAD, PAD, 20, 21, 22], [30, 31, 32, 33, 34]])
    expected = generate(
        model,
        {"input_ids": ids.repeat_interleave(G, 0), "attention_mask": (ids != PAD).long().repeat_interleave(G, 0)},
        sampling(),
    )
    with prefill_once(model):
        shared = generate(
            model, {"input_ids": ids, "attention_mask": (ids != PAD).long()}, sampling(num_return_sequences=G)
        )
    assert torch.equal(shared.sequences, expected.sequences)


def test_encoder_decoder_is_refused():
    config = AutoConfig.for_model("t5", vocab_size=VOCABULARY, d_model=HIDDEN, d_ff=32, num_layers=1, num_heads=2)
    assert "encoder-decoder" in why_not_prefill_once(AutoModelForSeq2SeqLM.from_config(config), sampling())


def test_module_that_does_not_generate_is_refused():
    with pytest.raises(ValueError, match="Linear has no part that generates"), prefill_once(nn.Linear(2, 2)):
        pass


def test_a_cache_under_an_unknown_name_is_refused_before_a_token_is_drawn(monkeypatch):
    """As transformers 5.24 renamed it: `past_key_values` became `cache`."""
    model = build_model("qwen2_5_vl")
    monkeypatch.setattr(generation, "_CACHE_NAMES", ("kv_store",))
    state = torch.get_rng_state()
    with prefill_once(model), pytest.raises(PrefillError, match="passes no cache under the names kv_store"):
        model.generate(**collate("qwen2_5_vl", PROMPTS), generation_config=sampling(num_return_sequences=G))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generate_without_a_prefill_stage_is_refused(monkeypatch):
    model = build_model("qwen2_5_vl")

    def sample_without_prefill(*args, **kwargs):
        raise RuntimeError("7 image features, 21 expected")

    monkeypatch.setattr(type(model), "_sample", sample_without_prefill)
    with pytest.raises(PrefillError, match="did not call _prefill") as caught, prefill_once(model):
        model.generate(**collate("qwen2_5_vl", PROMPTS), generation_config=sampling(num_return_sequences=G))
    assert "21 expected" in str(caught.value.__cause__)


def renamed_parameter(input_ids, config, model_kwargs):
    raise AssertionError("never called")


@pytest.mark.parametrize("hook", ["_prefill", "_expand_inputs_for_generation", "_prepare_generation_config"])
@pytest.mark.parametrize("other", [None, renamed_parameter], ids=["gone", "renamed"])
def test_an_unknown_hook_is_named_and_never_used(hook, other, monkeypatch):
    model = build_model("qwen2_5_vl")
    monkeypatch.setattr(model, hook, other, raising=False)
    reason = why_not_prefill_once(model, sampling())
    assert hook in reason
    with pytest.raises(PrefillError, match=hook), prefill_once(model):
        pass
