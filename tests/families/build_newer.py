"""Small checkpoints of families that the oldest tested version of transformers does not have all of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from tests.families import build_qwen
from tests.families.tiny import (
    ENCODER,
    MROPE,
    ROPE,
    Checkpoint,
    byte_tokenizer,
    chatml,
    decoder,
    pixels,
    qwen_vl_tokenizer,
)

TOWER, HALF, EXPERTS = build_qwen.TOWER, build_qwen.HALF, build_qwen.EXPERTS


def processor_of(name: str, tokenizer: PreTrainedTokenizerFast, *parts: Any, **options: Any) -> Any:
    """A processor of transformers that takes an image processor, a tokenizer and others."""
    return getattr(transformers, name)(
        parts[0], tokenizer, *parts[1:], chat_template=tokenizer.chat_template, **options
    )


def internvl_gpt_oss() -> Checkpoint:
    """InternVL3.5 over GPT-OSS: experts, sinks of attention, and a sliding window in every second layer."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = byte_tokenizer(chatml("<IMG_CONTEXT>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001}
    layers = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
    config = transformers.InternVLConfig(
        text_config=decoder(tokenizer, model_type="gpt_oss", head_dim=16, **experts, **layers),
        vision_config={**ENCODER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    videos = transformers.InternVLVideoProcessor(size={"height": 56, "width": 56})
    return config, transformers.InternVLProcessor(images, tokenizer, videos, 4, chat_template=tokenizer.chat_template)


def qwen3_omni_moe_thinker() -> Checkpoint:
    """The part of Qwen3-Omni that reads: experts in the decoder, deepstack features, and an audio tower."""
    tokenizer = build_qwen.omni_tokenizer(
        "<|image_pad|>",
        "<|video_pad|>",
        ("<|vision_start|>", "<|vision_end|>"),
        ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"),
    )
    config = transformers.Qwen3OmniMoeThinkerConfig(
        text_config=decoder(tokenizer, rope_parameters={**MROPE, "mrope_interleaved": True}, **EXPERTS),
        vision_config={**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        audio_config={
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "d_model": 32, "max_source_positions": 100, "n_window": 10, "output_dim": 64,
            "downsample_hidden_size": 16,
        },
        audio_token_id=tokenizer.audio_token_id,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        user_token_id=tokenizer.convert_tokens_to_ids("user"),
    )  # fmt: skip
    processor = transformers.Qwen3OmniMoeProcessor(
        transformers.Qwen2VLImageProcessor(size=pixels(32), patch_size=16, **HALF),
        transformers.Qwen2VLVideoProcessor(size=pixels(32), patch_size=16),
        transformers.WhisperFeatureExtractor(feature_size=16),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def exaone4_5() -> Checkpoint:
    """Grouped queries in the vision tower; the decoder has a sliding window in most layers."""
    tokenizer, ids = qwen_vl_tokenizer()
    layers = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 8}
    tower = {**TOWER, "window_size": 56, "fullatt_block_indexes": [1], "num_key_value_heads": 1}
    config = transformers.Exaone4_5_Config(
        text_config=decoder(tokenizer, model_type="exaone4", **layers), vision_config=tower,
        image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    processor = processor_of(
        "Exaone4_5_Processor", tokenizer, transformers.Qwen2VLImageProcessor(size=pixels(28)),
        transformers.Qwen2VLVideoProcessor(size=pixels(28)),
    )  # fmt: skip
    return config, processor


def glm_ocr() -> Checkpoint:
    """The processor is GLM-4.6V's."""
    tokenizer, ids = build_qwen.glm_tokenizer()
    text = build_qwen.glm_text(tokenizer, head_dim=16)
    config = transformers.GlmOcrConfig(text_config=text, vision_config={**TOWER, "image_size": 112}, **ids)
    size = build_qwen.glm_pixels()
    images, videos = transformers.Glm46VImageProcessor(size=size), transformers.Glm46VVideoProcessor(size=size)
    return config, processor_of("Glm46VProcessor", tokenizer, images, videos)


def glmga() -> Checkpoint:
    """The model is GLM-4.6V's; images are resized in another way."""
    tokenizer, ids = build_qwen.glm_tokenizer()
    config = transformers.GlmgaConfig(
        text_config={**build_qwen.glm_text(tokenizer), "model_type": "glm4v_text"},
        vision_config={**TOWER, "model_type": "glm4v_vision", "image_size": 112},
        **ids,
    )
    size = build_qwen.glm_pixels()
    images, videos = transformers.GlmgaImageProcessor(size=size), transformers.GlmgaVideoProcessor(size=size)
    return config, processor_of("Glm46VProcessor", tokenizer, images, videos)


def qwen4_exp() -> Checkpoint:
    """Several streams of hidden states, embeddings of n-grams, experts, and layers that carry a state."""
    tokenizer, ids = qwen_vl_tokenizer()
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 16, "value_head_dim": 16}
    config = transformers.Qwen4ExpConfig(
        text_config=decoder(
            tokenizer, head_dim=16, layer_types=["linear_attention", "linear_attention", "indexed_attention"],
            rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            shared_expert_intermediate_size=32, hc_count=2, hc_lowrank=8, ngram_vocab_size_base=64,
            make_ngram_vocab_size_divisible_by=8, heads_per_ngram=2, split_ngram_parts=2, ple_layer_ids=[1],
            indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16, indexer_compress_ratio=4,
            **{f"linear_{name}": value for name, value in linear.items()}, **EXPERTS,
        ),
        vision_config={**TOWER, "num_position_embeddings": 64}, **ids,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessor(size=pixels(32), patch_size=16, **HALF)
    videos = transformers.Qwen3VLVideoProcessor(size=pixels(32))
    return config, processor_of("Qwen3VLProcessor", tokenizer, images, videos)


def cohere_compass() -> Checkpoint:
    """Cohere's decoder under the tower of Qwen3-VL, with deepstack features."""
    names = ("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>")
    template = chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *names))
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(keys, tokenizer.convert_tokens_to_ids(list(names)), strict=True))
    config = transformers.CohereCompassConfig(
        text_config=decoder(
            tokenizer, logit_scale=0.25, rope_parameters={"full_attention": {**MROPE, "mrope_interleaved": True}},
        ),
        vision_config={**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, **ids,
    )  # fmt: skip
    images = transformers.CohereCompassImageProcessor(size=pixels(32), patch_size=16)
    videos = transformers.CohereCompassVideoProcessor(size=pixels(32), patch_size=16)
    return config, processor_of("CohereCompassProcessor", tokenizer, images, videos)


def video_llama_3() -> Checkpoint:
    """Images of any size; a list of merge sizes comes beside the pixels, one for each image."""
    tokenizer, ids = qwen_vl_tokenizer()
    config = transformers.VideoLlama3Config(
        text_config=decoder(tokenizer, model_type="qwen2"), vision_config={**ENCODER, "patch_size": 14},
        image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    images = transformers.VideoLlama3ImageProcessor(size=pixels(14))
    videos = transformers.VideoLlama3VideoProcessor(size=pixels(14))
    return config, processor_of("VideoLlama3Processor", tokenizer, images, videos)


def paddleocr_vl() -> Checkpoint:
    """Position embeddings are interpolated to each image's grid."""
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    marks = ("<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_PLACEHOLDER|>", "<|im_start|>")
    template = chatml("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    tokenizer = byte_tokenizer(template, "</s>", "<unk>", marks, bos="<s>", **named)
    start, end, video = tokenizer.convert_tokens_to_ids(list(marks[:3]))
    config = transformers.PaddleOCRVLConfig(
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=dict(MROPE)),
        vision_config={**ENCODER, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.image_token_id, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    return config, processor_of(
        "PaddleOCRVLProcessor", tokenizer, transformers.PaddleOCRVLImageProcessor(size=pixels(28))
    )


def cosmos3_edge() -> Checkpoint:
    """A SigLIP-2 tower over a decoder of plain attention and squared ReLUs."""
    tokenizer, ids = qwen_vl_tokenizer()
    config = transformers.Cosmos3EdgeConfig(
        text_config=decoder(tokenizer, head_dim=16, rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config={**ENCODER, "patch_size": 16, "num_patches": 16}, projector_hidden_size=48, **ids,
    )  # fmt: skip
    images = transformers.Cosmos3EdgeImageProcessor(size=pixels(32))
    videos = transformers.Cosmos3EdgeVideoProcessor(size=pixels(32))
    return config, processor_of("Cosmos3EdgeProcessor", tokenizer, images, videos)


def cosmos3_omni() -> Checkpoint:
    """The part of Cosmos3 that reads is Qwen3-VL."""
    tokenizer, ids = qwen_vl_tokenizer()
    config = transformers.Cosmos3OmniConfig(
        text_config=decoder(tokenizer, head_dim=16, rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config={**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, **ids,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessor(size=pixels(32), patch_size=16, **HALF)
    videos = transformers.Qwen3VLVideoProcessor(size=pixels(32))
    return config, processor_of("Qwen3VLProcessor", tokenizer, images, videos)


def hyperclovax_vision_v2() -> Checkpoint:
    """Qwen2.5-VL's tower over HyperCLOVA X, whose text config scales logits."""
    tokenizer, ids = qwen_vl_tokenizer()
    scales = {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}
    tower = {**TOWER, "window_size": 56, "fullatt_block_indexes": [1], "model_type": "qwen2_5_vl_vision"}
    config = transformers.HyperCLOVAXVisionV2Config(
        text_config=decoder(tokenizer, model_type="hyperclovax", attention_multiplier=0.2, **scales),
        vision_config=tower, image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    processor = processor_of(
        "HyperCLOVAXVisionV2Processor", tokenizer, transformers.Qwen2VLImageProcessor(size=pixels(28)),
        transformers.Qwen2VLVideoProcessor(size=pixels(28)),
    )  # fmt: skip
    return config, processor


def lfm3_vl() -> Checkpoint:
    """Convolutions between the layers of attention, in the tower as in the decoder."""
    tokenizer, ids = qwen_vl_tokenizer()
    layers = {"layer_types": ["conv", "sliding_attention", "full_attention"], "sliding_window": 8, "conv_L_cache": 3}
    rope = {"sliding_attention": dict(ROPE), "full_attention": dict(ROPE)}
    config = transformers.Lfm3VlConfig(
        text_config=decoder(tokenizer, model_type="lfm3", head_dim=16, rope_parameters=rope, **layers),
        vision_config={**ENCODER, "patch_size": 16, "num_key_value_heads": 1}, projector_hidden_size=48, **ids,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessor(size=pixels(32), patch_size=16, **HALF)
    videos = transformers.Qwen3VLVideoProcessor(size=pixels(32))
    return config, processor_of("Lfm3VlProcessor", tokenizer, images, videos)


# Rows of another name than the `model_type` that transformers must know.
MODEL_TYPES = {"internvl_gpt_oss": "gpt_oss"}

FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        internvl_gpt_oss, qwen3_omni_moe_thinker, exaone4_5, glm_ocr, glmga, qwen4_exp, cohere_compass, video_llama_3,
        paddleocr_vl, cosmos3_edge, cosmos3_omni, hyperclovax_vision_v2, lfm3_vl,
    )
    if MODEL_TYPES.get(family.__name__, family.__name__) in transformers.CONFIG_MAPPING
}  # fmt: skip
