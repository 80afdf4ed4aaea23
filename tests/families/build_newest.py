"""Small checkpoints of families with decoders or image formats of their own; see `build_newer`."""

from __future__ import annotations

from collections.abc import Callable

import transformers

from tests.families import build_qwen
from tests.families.build_newer import TOWER, processor_of
from tests.families.tiny import (
    ENCODER,
    MROPE,
    ROPE,
    Checkpoint,
    byte_tokenizer,
    chat_template,
    chatml,
    decoder,
    pixels,
    qwen_vl_tokenizer,
)

LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
# Two of four experts for each token, in all layers but the first, over attention whose keys and values are compressed.
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
# All tokens of a short prompt, as the published 2048: which of more are picked would depend on padding.
INDEXER = {"index_topk": 2048, "index_head_dim": 16, "index_n_heads": 2}


def molmo2() -> Checkpoint:
    """Crops that overlap, a pooling of patches by attention, and marks between their rows."""
    names = (
        "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
        "<im_low>", "<|image|>", "<|video|>",
    )  # fmt: skip
    tokenizer = byte_tokenizer(chatml("<|image|>"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *names))
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(names)), strict=True))
    vision = {**ENCODER, "num_key_value_heads": 2, "head_dim": 16, "image_size": [56, 56], "patch_size": 14}
    config = transformers.Molmo2Config(
        text_config=decoder(tokenizer, head_dim=16, additional_vocab_size=8),
        vision_config=vision,
        adapter_config={
            "vision_feature_layer": [-1, 0], "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 16, "intermediate_size": 48, "text_hidden_size": 64,
        },
        image_start_token_id=ids["<im_start>"], low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"], image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"], frame_end_token_id=ids["<frame_end>"],
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    images = transformers.Molmo2ImageProcessor(size=size, max_crops=4, overlap_margins=[1, 1])
    videos = transformers.Molmo2VideoProcessor(size=size)
    return config, transformers.Molmo2Processor(images, videos, tokenizer, chat_template=tokenizer.chat_template)


def _minicpm(config_name: str, processor_name: str, part: str, downsample: str, **more: str) -> Checkpoint:
    """Slices of an image, each with its number of visual tokens; the decoder is Qwen3.5's."""
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    tokenizer = byte_tokenizer(chatml("<|image_pad|>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    marks = {field: tokenizer.convert_tokens_to_ids(token) for field, token in more.items()}
    rope = {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    layers = {"layer_types": ["linear_attention", "linear_attention", "full_attention"], **LINEAR}
    config = getattr(transformers, config_name)(
        text_config=decoder(tokenizer, model_type="qwen3_5_text", head_dim=16, rope_parameters=rope, **layers),
        vision_config={**ENCODER, "image_size": 112, "patch_size": 14}, insert_layer_id=0, image_size=112,
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        downsample_mode=downsample, **marks,
    )  # fmt: skip
    slices = {"max_slice_nums": 4, "scale_resolution": 56, "patch_size": 14, "downsample_mode": downsample}
    images = getattr(transformers, f"{part}ImageProcessor")(**slices)
    videos = getattr(transformers, f"{part}VideoProcessor")(**slices)
    kind = getattr(transformers, processor_name)
    return config, kind(images, videos, tokenizer, chat_template=tokenizer.chat_template)


def minicpmv4_6() -> Checkpoint:
    return _minicpm("MiniCPMV4_6Config", "MiniCPMV4_6Processor", "MiniCPMV4_6", "16x")


def minicpmv4_7() -> Checkpoint:
    """Positions of a slice are those of its place in the image."""
    marks = {"image_start_id": "<image>", "image_end_id": "</image>", "slice_start_id": "<slice>"}
    marks |= {"slice_end_id": "</slice>", "newline_id": "Ċ"}
    return _minicpm("MiniCPMV4_7Config", "MiniCPMV4_7Processor", "MiniCPMV4_6", "16x", **marks)


def minicpm_ocr() -> Checkpoint:
    return _minicpm("MiniCPMOcrConfig", "MiniCPMOcrProcessor", "MiniCPMOcr", "4x")


def glm5_next() -> Checkpoint:
    """Layers that carry a state, attention to the tokens that an index picks, and streams of hidden states."""
    tokenizer, ids = build_qwen.glm_tokenizer()
    latent = {**LATENT, "qk_rope_head_dim": 0}
    layers = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
    linear = {"linear_head_dim": 16, "linear_num_heads": 2}
    config = transformers.Glm5NextConfig(
        text_config=build_qwen.glm_text(
            tokenizer, mlp_layer_types=["dense", "sparse", "sparse"], hc_mult=2, index_kpool=2, num_key_value_heads=4,
            **latent, **INDEXER, **layers, **linear,
        ),
        vision_config={**TOWER, "image_size": 112, "projection_intermediate_size": 48}, **ids,
    )  # fmt: skip
    images = transformers.Glm5NextImageProcessor(min_image_tokens=1, max_image_tokens=32)
    videos = transformers.Glm5NextVideoProcessor(min_image_tokens=1, max_image_tokens=32)
    return config, processor_of("Glm5NextProcessor", tokenizer, images, videos)


def hy_v4_vl() -> Checkpoint:
    """Attention to the tokens that an index picks, and streams of hidden states."""
    tokenizer, ids = qwen_vl_tokenizer()
    config = transformers.HYV4VLConfig(
        text_config=decoder(
            tokenizer, rope_parameters={**ROPE, "mrope_section": [2, 1, 1]}, hc_mult=2, **LATENT, **INDEXER
        ),
        vision_config={**ENCODER, "patch_size": 16, "out_hidden_size": 64, "max_image_size": 256},
        image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    images, videos = (
        transformers.HYV4VLImageProcessor(size=pixels(32)),
        transformers.HYV4VLVideoProcessor(size=pixels(32)),
    )
    return config, processor_of("HYV4VLProcessor", tokenizer, images, videos)


def kimi_k25() -> Checkpoint:
    """A decoder of DeepSeek-V3's kind."""
    marks = ("<|media_begin|>", "<|media_end|>", "<|im_start|>")
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    template = chatml("<|media_begin|><|media_pad|><|media_end|>")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "[PAD]", marks, **named)
    start, end = tokenizer.convert_tokens_to_ids(list(marks[:2]))
    config = transformers.Kimi_K25Config(
        text_config=decoder(
            tokenizer, model_type="deepseek_v3", num_key_value_heads=4, first_k_dense_replace=1, num_mtp_layers=0,
            **LATENT,
        ),
        vision_config={**ENCODER, "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.Kimi_K25ImageProcessor(max_patches=64)
    videos = transformers.Kimi_K25VideoProcessor(max_patches=64)
    return config, processor_of("Kimi_K25Processor", tokenizer, images, videos)


def qianfan_ocr() -> Checkpoint:
    """InternVL's tiles; the chat template writes a mark that the processor replaces by the image's tokens."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = byte_tokenizer(
        chatml("<image>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", "<image>"), **named
    )
    config = transformers.QianfanOCRConfig(
        text_config=decoder(tokenizer, model_type="qwen3", head_dim=16, sliding_window=None),
        vision_config={**ENCODER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    return config, processor_of("QianfanOCRProcessor", tokenizer, images, image_seq_length=4)


def granite_docling() -> Checkpoint:
    """Tiles of Idefics3 over a Granite decoder, which scales logits."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ("<fake_token_around_image>", "<image>", "<global-img>", "<|start_of_role|>", "<|end_of_role|>", *tiles)
    template = chat_template(
        "<|start_of_role|>{{ message['role'] }}<|end_of_role|>", "<image>", "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    )  # fmt: skip
    tokenizer = byte_tokenizer(template, "<|end_of_text|>", "<|pad|>", special)
    scales = {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}
    config = transformers.GraniteDoclingConfig(
        text_config=decoder(tokenizer, attention_multiplier=0.2, **scales),
        vision_config={
            **ENCODER, "image_size": 56, "patch_size": 14, "out_hidden_size": 64, "scale_factor": 2,
            "use_fine_route": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = transformers.GraniteDoclingImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    return config, processor_of("GraniteDoclingProcessor", tokenizer, images, image_seq_len=4)


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        molmo2, minicpmv4_6, minicpmv4_7, minicpm_ocr, glm5_next, hy_v4_vl, kimi_k25, qianfan_ocr,
        granite_docling,
    )
    if family.__name__ in transformers.CONFIG_MAPPING
}  # fmt: skip
