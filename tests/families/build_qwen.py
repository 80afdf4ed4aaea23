"""Small checkpoints of families whose decoders or image processors descend from Qwen-VL and GLM-V, and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    Glm4vConfig,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VConfig,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5MoeConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperFeatureExtractor,
)

from tests.families.tiny import (
    MROPE,
    Checkpoint,
    byte_tokenizer,
    chat_template,
    chatml,
    decoder,
    pixels,
    qwen_vl_tokenizer,
)

# The fields that every vision tower of the Qwen-VL kind has.
TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
# Half of a head's 16 places turn: four frequencies for time, height and width.
HALF_MROPE = {**MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# Two of four experts for each token.
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001}


def glm_tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """The tokenizer of the GLM-V families and the ids that their configurations name."""
    names = (
        "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    )  # fmt: skip
    turns = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<sop>", "[gMASK]")
    template = chat_template(
        "<|{{ message['role'] }}|>\n",
        "<|begin_of_image|><|image|><|end_of_image|>",
        "",
        "<|assistant|>\n",
        start="[gMASK]<sop>",
    )
    tokenizer = byte_tokenizer(template, "<|user|>", "<|endoftext|>", (*turns, *names))
    keys = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    ids = tokenizer.convert_tokens_to_ids(list(names))
    return tokenizer, {f"{key}_token_id": index for key, index in zip(keys, ids, strict=True)}


def glm_text(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """A response may end in any of three tokens."""
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    return decoder(tokenizer, eos_token_id=ends, rope_parameters=dict(HALF_MROPE), **changes)


def glm4v() -> Checkpoint:
    """GLM-4.1V. Position embeddings of the vision tower are interpolated to each image's grid."""
    tokenizer, ids = glm_tokenizer()
    config = Glm4vConfig(text_config=glm_text(tokenizer), vision_config={**TOWER, "image_size": 112}, **ids)
    images, videos = Glm4vImageProcessor(size=glm_pixels()), Glm4vVideoProcessor(size=glm_pixels())
    return config, Glm4vProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def glm_pixels() -> dict[str, int]:
    """These image processors count the pixels of both frames that an image is doubled to."""
    return {name: 2 * value for name, value in pixels(28).items()}


def glm46v() -> Checkpoint:
    """The modules are those of GLM-4.1V."""
    tokenizer, ids = glm_tokenizer()
    config = Glm46VConfig(
        text_config={**glm_text(tokenizer), "model_type": "glm4v_text"},
        vision_config={**TOWER, "model_type": "glm4v_vision", "image_size": 112},
        **ids,
    )
    images, videos = Glm46VImageProcessor(size=glm_pixels()), Glm46VVideoProcessor(size=glm_pixels())
    return config, Glm46VProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def glm4v_moe() -> Checkpoint:
    """GLM-4.5V. Experts in all layers but the first, chosen by sigmoid scores with a correction bias."""
    tokenizer, ids = glm_tokenizer()
    experts = {
        "moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": True, "router_aux_loss_coef": 0.0001,
    }  # fmt: skip
    text = glm_text(tokenizer, head_dim=16, attention_bias=True, **experts)
    config = Glm4vMoeConfig(text_config=text, vision_config={**TOWER, "image_size": 112}, **ids)
    images, videos = Glm4vImageProcessor(size=glm_pixels()), Glm4vVideoProcessor(size=glm_pixels())
    return config, Glm4vProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def _qwen3_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    images = Qwen2VLImageProcessor(size=pixels(32), patch_size=16, **HALF)
    videos = Qwen3VLVideoProcessor(size=pixels(32))
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def qwen3_vl_moe() -> Checkpoint:
    """Experts in every layer; features of two vision layers are added to the decoder's first two (deepstack)."""
    tokenizer, ids = qwen_vl_tokenizer()
    rope = {**MROPE, "mrope_interleaved": True}
    config = Qwen3VLMoeConfig(
        text_config=decoder(tokenizer, head_dim=16, tie_word_embeddings=False, rope_parameters=rope, **EXPERTS),
        vision_config={**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **ids,
    )
    return config, _qwen3_processor(tokenizer)


def qwen3_5_moe() -> Checkpoint:
    """Experts in every layer, one of them shared; two of three layers carry a state in place of attention."""
    tokenizer, ids = qwen_vl_tokenizer()
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 16, "value_head_dim": 16}
    config = Qwen3_5MoeConfig(
        text_config=decoder(
            tokenizer,
            head_dim=16,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            shared_expert_intermediate_size=32,
            **{f"linear_{name}": value for name, value in linear.items()},
            **EXPERTS,
        ),
        vision_config={**TOWER, "num_position_embeddings": 64},
        **ids,
    )
    return config, _qwen3_processor(tokenizer)


def omni_tokenizer(image: str, video: str, vision: tuple[str, str], audio: tuple[str, str, str]) -> Any:
    """The tokenizer of a Qwen-Omni family; `vision` are start and end, `audio` the placeholder, start and end."""
    named = {"image_token": image, "video_token": video, "audio_token": audio[0]}
    named |= {"vision_bos_token": vision[0], "vision_eos_token": vision[1]}
    named |= {"audio_bos_token": audio[1], "audio_eos_token": audio[2]}
    template = chatml(vision[0] + image + vision[1])
    return byte_tokenizer(template, "<|im_end|>", "<|endoftext|>", ("<|im_start|>", "assistant", "user"), **named)


def qwen2_5_omni_thinker() -> Checkpoint:
    """The part of Qwen2.5-Omni that reads: with an audio tower, which no image passes through."""
    tokenizer = omni_tokenizer(
        "<|IMAGE|>",
        "<|VIDEO|>",
        ("<|vision_bos|>", "<|vision_eos|>"),
        ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    )
    config = Qwen2_5OmniThinkerConfig(
        text_config=decoder(tokenizer, tie_word_embeddings=False, rope_parameters=dict(MROPE)),
        vision_config={**TOWER, "window_size": 56, "fullatt_block_indexes": [1]},
        audio_config={
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "d_model": 32, "max_source_positions": 100, "n_window": 10, "output_dim": 64,
        },
        audio_token_index=tokenizer.audio_token_id,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
        user_token_id=tokenizer.convert_tokens_to_ids("user"),
    )  # fmt: skip
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(size=pixels(28)),
        Qwen2VLVideoProcessor(size=pixels(28)),
        WhisperFeatureExtractor(feature_size=16),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def ernie4_5_vl_moe() -> Checkpoint:
    """Experts of their own for text and for images, distinguished by a field of the processor with a value per
    token."""
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>", "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
    }  # fmt: skip
    template = chat_template(
        "{{ message['role'] | capitalize }}: ",
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", "<|end_of_sentence|>\n", "Assistant: ",
        start="<|begin_of_sentence|>",
    )  # fmt: skip
    tokenizer = byte_tokenizer(
        template, "</s>", "<unk>", ("<|end_of_sentence|>",), bos="<|begin_of_sentence|>", **named
    )
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    experts = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": [32, 16]}
    config = Ernie4_5_VLMoeConfig(
        text_config=decoder(
            tokenizer, mlp_layer_types=["dense", "sparse", "sparse"],
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [3, 3, 2]}, **experts,
        ),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}, **ids,
    )  # fmt: skip
    images = Ernie4_5_VLMoeImageProcessor(size=pixels(28))
    videos = Ernie4_5_VLMoeVideoProcessor(size=pixels(28), draw_on_frames=False)  # no font to draw with
    return config, Ernie4_5_VLMoeProcessor(images, tokenizer, videos, chat_template=template)


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        glm4v,
        glm46v,
        glm4v_moe,
        qwen3_vl_moe,
        qwen3_5_moe,
        qwen2_5_omni_thinker,
        ernie4_5_vl_moe,
    )
}
