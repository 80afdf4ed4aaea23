"""Small checkpoints of the LLaVA-like families: a vision tower, a projector, and a text decoder of any family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    AyaVisionConfig,
    AyaVisionProcessor,
    CLIPImageProcessor,
    Cohere2VisionConfig,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    DeepseekOcr2Config,
    DeepseekOcr2ImageProcessor,
    DeepseekOcr2Processor,
    GotOcr2Config,
    GotOcr2ImageProcessor,
    GotOcr2Processor,
    Granite4VisionConfig,
    Granite4VisionProcessor,
    Idefics2Config,
    Idefics2ImageProcessor,
    Idefics2Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    Lfm2VlConfig,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LightOnOcrConfig,
    LightOnOcrProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaProcessor,
    Mistral3Config,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    VipLlavaConfig,
)

from tests.families.tiny import ENCODER, PINPOINTS, Checkpoint, byte_tokenizer, chat_template, chatml, decoder

VICUNA = chat_template(
    "{{ message['role'] | upper }}: ",
    "<image>\n",
    "{{ ' ' if message['role'] == 'user' else '</s>' }}",
    "ASSISTANT:",
)
CLIP = {**ENCODER, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
SQUARE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
# CLIP's next-to-last layer without its class token.
SELECTED = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def vicuna_tokenizer(*others: str) -> PreTrainedTokenizerFast:
    return byte_tokenizer(VICUNA, "</s>", "<unk>", ("<image>", *others), bos="<s>")


def image_token(tokenizer: PreTrainedTokenizerFast, token: str = "<image>") -> int:
    return tokenizer.convert_tokens_to_ids(token)


def llava() -> Checkpoint:
    tokenizer = vicuna_tokenizer()
    config = LlavaConfig(
        text_config=decoder(tokenizer, model_type="llama"), vision_config={**CLIP, "model_type": "clip_vision_model"},
        image_token_index=image_token(tokenizer), image_seq_length=4,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(**SQUARE), tokenizer, chat_template=tokenizer.chat_template, **SELECTED
    )
    return config, processor


def vipllava() -> Checkpoint:
    """Features of several vision layers, joined before the projector."""
    tokenizer = vicuna_tokenizer()
    config = VipLlavaConfig(
        text_config=decoder(tokenizer, model_type="llama"), vision_config={**CLIP, "model_type": "clip_vision_model"},
        image_token_index=image_token(tokenizer), image_seq_length=4, vision_feature_layers=[-2, -3],
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(**SQUARE), tokenizer, chat_template=tokenizer.chat_template, **SELECTED
    )
    return config, processor


def video_llava() -> Checkpoint:
    """Two towers; the processor calls pixels `pixel_values_images`."""
    tokenizer = vicuna_tokenizer("<video>")
    config = VideoLlavaConfig(
        text_config=decoder(tokenizer, model_type="llama"), vision_config={**CLIP, "model_type": "clip_vision_model"},
        image_token_index=image_token(tokenizer), video_token_index=image_token(tokenizer, "<video>"),
        image_seq_length=4, video_seq_length=8,
    )  # fmt: skip
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**SQUARE), VideoLlavaVideoProcessor(**SQUARE), tokenizer,
        chat_template=tokenizer.chat_template, **SELECTED,
    )  # fmt: skip
    return config, processor


def _llava_next(text: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Checkpoint:
    config = LlavaNextConfig(
        text_config=text, vision_config=CLIP, image_token_index=image_token(tokenizer),
        image_grid_pinpoints=PINPOINTS, image_seq_length=4,
    )  # fmt: skip
    images = LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **SQUARE)
    return config, LlavaNextProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **SELECTED)


def granite_vision() -> Checkpoint:
    """Granite's text config divides logits by 8, and LLaVA-NeXT's forward does not."""
    tokenizer = vicuna_tokenizer()
    scales = {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}
    return _llava_next(decoder(tokenizer, model_type="granite", attention_multiplier=0.2, **scales), tokenizer)


def llava_next_mistral() -> Checkpoint:
    """A sliding window in every layer, which Mistral's config names without a list of layers."""
    tokenizer = vicuna_tokenizer()
    return _llava_next(decoder(tokenizer, model_type="mistral", sliding_window=16), tokenizer)


def llava_next_video() -> Checkpoint:
    tokenizer = vicuna_tokenizer("<video>")
    config = LlavaNextVideoConfig(
        text_config=decoder(tokenizer, model_type="llama"), vision_config=CLIP,
        image_token_index=image_token(tokenizer), video_token_index=image_token(tokenizer, "<video>"),
        image_grid_pinpoints=PINPOINTS, image_seq_length=4, video_seq_length=4,
    )  # fmt: skip
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**SQUARE), LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **SQUARE),
        tokenizer, chat_template=tokenizer.chat_template, **SELECTED,
    )  # fmt: skip
    return config, processor


PIXTRAL = {**ENCODER, "model_type": "pixtral", "head_dim": 16, "image_size": 112, "patch_size": 14}
INST = chat_template("[INST]", "[IMG]", "[/INST]", "", start="<s>")


def pixtral() -> Checkpoint:
    """An image keeps its shape: a row of patches ends in a separate token, which is not an image token."""
    tokenizer = byte_tokenizer(
        INST, "</s>", "<pad>", ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"), bos="<s>"
    )
    config = LlavaConfig(
        text_config=decoder(tokenizer, model_type="mistral", sliding_window=None), vision_config=PIXTRAL,
        image_token_index=image_token(tokenizer, "[IMG]"), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})
    processor = PixtralProcessor(images, tokenizer, patch_size=14, chat_template=tokenizer.chat_template)
    return config, processor


def mistral3() -> Checkpoint:
    """As Pixtral; two by two patches are merged."""
    tokenizer = byte_tokenizer(
        INST, "</s>", "<pad>", ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"), bos="<s>"
    )
    config = Mistral3Config(
        text_config=decoder(tokenizer, model_type="mistral", sliding_window=None), vision_config=PIXTRAL,
        image_token_index=image_token(tokenizer, "[IMG]"), spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    processor = PixtralProcessor(
        images, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=tokenizer.chat_template
    )
    return config, processor


def idefics2() -> Checkpoint:
    """A perceiver makes four visual tokens of every image."""
    template = chat_template(
        "{{ message['role'] | capitalize }}: ", "<image>", "<end_of_utterance>\n", "Assistant:", start="<s>"
    )
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    tokenizer = byte_tokenizer(template, "</s>", "<unk>", special, bos="<s>")
    config = Idefics2Config(
        text_config=decoder(tokenizer, model_type="mistral", sliding_window=None),
        vision_config={**ENCODER, "image_size": 56, "patch_size": 14},
        perceiver_config={
            "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
            "num_key_value_heads": 2, "hidden_size": 64,
        },
        image_token_id=image_token(tokenizer),
    )  # fmt: skip
    images = Idefics2ImageProcessor(size={"longest_edge": 56, "shortest_edge": 28}, do_image_splitting=False)
    return config, Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def internvl_moe() -> Checkpoint:
    """InternVL3.5 over experts, whose text config asks for a load-balancing loss."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = byte_tokenizer(chatml("<IMG_CONTEXT>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "router_aux_loss_coef": 0.001}
    config = InternVLConfig(
        text_config=decoder(tokenizer, model_type="qwen3_moe", head_dim=16, **experts),
        vision_config={**ENCODER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    videos = InternVLVideoProcessor(size={"height": 56, "width": 56})
    return config, InternVLProcessor(images, tokenizer, videos, 4, chat_template=tokenizer.chat_template)


COHERE = chat_template(
    "<|START_OF_TURN_TOKEN|>{{ message['role'] }}", "<image>", "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|>assistant",
)  # fmt: skip
COHERE_TOKENS = ("<|START_OF_TURN_TOKEN|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")
COHERE_TOKENS += ("<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
SIGLIP = {**ENCODER, "model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False}


# Real ones have a layer that sees all in every fourth.
LAYERS = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 8}


def aya_vision() -> Checkpoint:
    """Cohere's text config scales logits; its vision models do not."""
    tokenizer = byte_tokenizer(COHERE, "<|END_OF_TURN_TOKEN|>", "<PAD>", COHERE_TOKENS, bos="<BOS_TOKEN>")
    config = AyaVisionConfig(
        text_config=decoder(tokenizer, model_type="cohere2", logit_scale=0.25, **LAYERS),
        vision_config={**SIGLIP, "image_size": 56}, image_token_index=image_token(tokenizer, "<|IMG_PATCH|>"),
        downsample_factor=2,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    processor = AyaVisionProcessor(
        images, tokenizer, patch_size=14, img_size=56, downsample_factor=2, chat_template=tokenizer.chat_template
    )
    return config, processor


def cohere2_vision() -> Checkpoint:
    """Cohere's text config scales logits, the vision model does not; every tile ends in a line break token."""
    named = {
        "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    template = chat_template(
        "<|START_OF_TURN_TOKEN|>{{ message['role'] }}", "<|IMG_PATCH|>", "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|>assistant", start="<BOS_TOKEN>",
    )  # fmt: skip
    turns = ("<|START_OF_TURN_TOKEN|>",)
    tokenizer = byte_tokenizer(template, "<|END_OF_TURN_TOKEN|>", "<PAD>", turns, bos="<BOS_TOKEN>", **named)
    config = Cohere2VisionConfig(
        text_config=decoder(tokenizer, model_type="cohere2", logit_scale=0.25, **LAYERS),
        vision_config={**SIGLIP, "image_size": 56},
        image_token_id=tokenizer.image_token_id, downsample_factor=2, alignment_intermediate_size=64,
    )  # fmt: skip
    # `patch_size` is the side of a tile in visual tokens.
    images = Cohere2VisionImageProcessor(size={"height": 56, "width": 56}, patch_size=2, max_patches=4)
    return config, Cohere2VisionProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def lfm2_vl() -> Checkpoint:
    """Two of three decoder layers are short convolutions, which carry a state in place of attention."""
    rows = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }  # fmt: skip
    template = "<|startoftext|>" + chatml("<image>")
    special = ("<|im_start|>", *rows)
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<|pad|>", special, bos="<|startoftext|>", **named)
    config = Lfm2VlConfig(
        text_config=decoder(
            tokenizer, model_type="lfm2", layer_types=["conv", "conv", "full_attention"], conv_L_cache=3,
            block_auto_adjust_ff_dim=False, block_multiple_of=32,
        ),
        vision_config={
            **ENCODER, "model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 16,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.image_token_id, downsample_factor=2, projector_hidden_size=64,
    )  # fmt: skip
    images = Lfm2VlImageProcessor(
        tile_size=64, size={"height": 64, "width": 64}, min_image_tokens=1, max_image_tokens=4, min_tiles=2,
        max_tiles=4, encoder_patch_size=16, downsample_factor=2,
    )  # fmt: skip
    return config, Lfm2VlProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def lighton_ocr() -> Checkpoint:
    """Pixtral's tower over Qwen3, without tokens between rows of an image."""
    named = {
        "image_token": "<|image_pad|>",
        "image_break_token": "<|vision_pad|>",
        "image_end_token": "<|vision_end|>",
    }
    tokenizer = byte_tokenizer(chatml("<|image_pad|>"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    config = LightOnOcrConfig(
        text_config=decoder(tokenizer, model_type="qwen3", head_dim=16, sliding_window=None),
        vision_config={**ENCODER, "model_type": "pixtral", "head_dim": 16, "image_size": 112, "patch_size": 14},
        image_token_id=tokenizer.image_token_id, spatial_merge_size=2,
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    processor = LightOnOcrProcessor(
        images, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=tokenizer.chat_template
    )
    return config, processor


def granite4_vision() -> Checkpoint:
    """Image positions are zero at the decoder's input; each of the six layers adds features of its own there.

    The projector drops out values in training mode, as published checkpoints do.
    """
    template = chat_template(
        "<|start_of_role|>{{ message['role'] }}<|end_of_role|>", "<image>\n", "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    )  # fmt: skip
    special = ("<|start_of_role|>", "<|end_of_role|>", "<image>")
    tokenizer = byte_tokenizer(template, "<|end_of_text|>", "<|pad|>", special)
    scales = {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = Granite4VisionConfig(
        text_config=decoder(tokenizer, num_hidden_layers=6, attention_multiplier=0.2, **scales),
        # The query transformer has a head for every 64 of the vision tower's width.
        vision_config={**SIGLIP, "image_size": 56, "hidden_size": 64},
        qformer_config={
            "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48,
            "cross_attention_frequency": 1, "use_qformer_text_input": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_grid_pinpoints=pinpoints,
        image_seq_length=4, vision_feature_select_strategy="full", vision_feature_layer=-1,
        downsample_rate="2/4", deepstack_layer_map=[[-2, 1], [-1, 0]], spatial_vision_layer=-1,
        spatial_target_layers=[2, 3, 4, 5], projector_dropout=0.1,
    )  # fmt: skip
    images = LlavaNextImageProcessor(
        size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor = Granite4VisionProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="full", downsample_rate="2/4",
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return config, processor


# A grid of 64 by 64 patches: the number of visual tokens of the complete image is fixed in both families below.
SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 14,
    "global_attn_indexes": [1], "mlp_dim": 48,
}  # fmt: skip


def deepseek_ocr2() -> Checkpoint:
    """Always 256 visual tokens for the complete image, 144 for each tile, and one that separates them."""
    template = chat_template("", "<image>\n", "", "")
    tokenizer = byte_tokenizer(
        template, "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", ("<image>",), bos="<｜begin▁of▁sentence｜>"
    )
    experts = {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse", "sparse"],
    }  # fmt: skip
    config = DeepseekOcr2Config(
        text_config=decoder(tokenizer, **experts),
        vision_config={
            "sam_config": {**SAM, "image_size": 128, "patch_size": 2, "downsample_channels": [24, 32]},
            "encoder_config": {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 1024},
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = DeepseekOcr2ImageProcessor(size={"height": 128, "width": 128}, tile_size=96)
    processor = DeepseekOcr2Processor(
        images, tokenizer, chat_template=tokenizer.chat_template, patch_size=2, downsample_ratio=4
    )
    return config, processor


def got_ocr2() -> Checkpoint:
    """256 visual tokens for every image, the processor's fixed number; it takes no prompt without an image."""
    tokenizer = byte_tokenizer(
        chatml("<img><imgpad></img>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", "<img>", "</img>", "<imgpad>")
    )
    config = GotOcr2Config(
        text_config=decoder(tokenizer, model_type="qwen2"), vision_config={**SAM, "image_size": 64, "patch_size": 1},
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"), image_seq_length=256,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size={"height": 64, "width": 64})
    return config, GotOcr2Processor(images, tokenizer, chat_template=tokenizer.chat_template)


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        llava, vipllava, video_llava, granite_vision, llava_next_mistral, llava_next_video, pixtral, mistral3,
        idefics2, internvl_moe, aya_vision, cohere2_vision, lfm2_vl, lighton_ocr, granite4_vision, deepseek_ocr2,
        got_ocr2,
    )
}  # fmt: skip
