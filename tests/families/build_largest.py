"""Small checkpoints of families whose published models are very large, or read sound too; see `build_newer`."""

from __future__ import annotations

from collections.abc import Callable

import transformers

from tests.families.build_newer import HALF, processor_of
from tests.families.build_newest import INDEXER, LATENT
from tests.families.tiny import (
    ENCODER,
    Checkpoint,
    byte_tokenizer,
    chat_template,
    chatml,
    decoder,
    pixels,
)

WINDOW = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 8}


def minimax_m3_vl() -> Checkpoint:
    """Experts beside a shared one; the processor writes marks around an image."""
    marks = ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")
    tokenizer = byte_tokenizer(chatml(marks[0]), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *marks))
    image, video = tokenizer.convert_tokens_to_ids(list(marks[:2]))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 96}
    experts |= {"shared_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    config = transformers.MiniMaxM3VLConfig(
        text_config=decoder(tokenizer, head_dim=16, rotary_dim=8, **experts),
        vision_config={**ENCODER, "image_size": 112, "patch_size": 14}, projector_hidden_size=48,
        image_token_index=image, video_token_index=video,
    )  # fmt: skip
    images = transformers.MiniMaxM3VLImageProcessor(size=pixels(28))
    videos = transformers.MiniMaxM3VLVideoProcessor(size=pixels(28))
    return config, processor_of("MiniMaxM3VLProcessor", tokenizer, images, videos)


MUSE = ("<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_frame_separator|>")
MUSE += ("<|vid_start|>", "<|vid_end|>", "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>", "<|im_start|>")
MUSE_TOWER = {**ENCODER, "num_hidden_layers": 4, "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8}


def muse_glimmer() -> Checkpoint:
    """Layers without positions between those with a sliding window; logits are capped."""
    tokenizer = byte_tokenizer(chatml("<|patch|>"), "<|im_end|>", "<|endoftext|>", MUSE)
    image, video = tokenizer.convert_tokens_to_ids(["<|patch|>", "<|video|>"])
    config = transformers.MuseGlimmerConfig(
        text_config=decoder(tokenizer, head_dim=16, **WINDOW), vision_config=MUSE_TOWER, image_token_id=image,
        video_token_id=video, out_hidden_size=128, projector_hidden_size=48,
    )  # fmt: skip
    images = transformers.MuseGlimmerImageProcessor(max_image_tokens=16)
    videos = transformers.MuseGlimmerVideoProcessor()
    kind = transformers.MuseGlimmerProcessor
    return config, kind(images, videos, tokenizer, chat_template=tokenizer.chat_template)


def muse_spark() -> Checkpoint:
    """As Muse Glimmer, with experts and an audio tower."""
    tokenizer = byte_tokenizer(chatml("<|patch|>"), "<|im_end|>", "<|endoftext|>", MUSE)
    image, video, audio = tokenizer.convert_tokens_to_ids(["<|patch|>", "<|video|>", "<|audio|>"])
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_hidden_size": 32}
    config = transformers.MuseSparkConfig(
        text_config=decoder(tokenizer, head_dim=16, **WINDOW, **experts), vision_config=MUSE_TOWER,
        audio_config={"patch_sizes": [4, 4], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2,
                      "out_hidden_size": 64},
        image_token_id=image, video_token_id=video, audio_token_id=audio, out_hidden_size=128,
        projector_hidden_size=48,
    )  # fmt: skip
    images = transformers.MuseGlimmerImageProcessor(max_image_tokens=16)
    videos = transformers.MuseGlimmerVideoProcessor()
    sounds, kind = transformers.MuseSparkFeatureExtractor(), transformers.MuseSparkProcessor
    return config, kind(images, videos, tokenizer, sounds, chat_template=tokenizer.chat_template)


def step3p7() -> Checkpoint:
    """The complete image, and crops of it."""
    marks = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
    tokenizer = byte_tokenizer(chatml("<im_patch>"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *marks))
    experts = {"n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts |= {"share_expert_dim": 32, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    config = transformers.Step3p7Config(
        text_config=decoder(tokenizer, head_dim=16, **WINDOW, **experts),
        vision_config={**ENCODER, "image_size": 112, "patch_size": 14, "max_position_embeddings": 64},
        image_token_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
    )
    images = transformers.Step3p7ImageProcessor(size={"height": 112, "width": 112}, patch_size=56, max_image_size=224)
    return config, processor_of("Step3p7Processor", tokenizer, images)


def dots3_note() -> Checkpoint:
    """Experts in the vision tower too, compressed keys and values, and an audio tower."""
    marks = ("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>")
    tokenizer = byte_tokenizer(chatml("<|imgpad|>"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", *marks))
    image, video, audio = tokenizer.convert_tokens_to_ids(list(marks))
    tower = {
        **ENCODER,
        "patch_size": 14,
        "moe_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    tower |= {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32, "adapter_out_dim": 64}
    config = transformers.Dots3NoteConfig(
        text_config=decoder(
            tokenizer, num_key_value_heads=4, shared_experts_intermediate_size=32, **LATENT, **INDEXER
        ),
        vision_config=tower,
        audio_config={**ENCODER, "downsample_hidden_size": 16, "adapter_input_size": 32, "adapter_out_dim": 64},
        image_token_id=image, video_token_id=video, audio_token_id=audio,
    )  # fmt: skip
    processor = transformers.Dots3NoteProcessor(
        transformers.Qwen2VLImageProcessor(size=pixels(28), temporal_patch_size=1, **HALF), tokenizer,
        transformers.Qwen3VLVideoProcessor(size=pixels(28), patch_size=14), transformers.Dots3NoteFeatureExtractor(),
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return config, processor


INKLING = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 16, "head_dim": 16, "sliding_window_size": 8, "d_rel": 4,
    "rel_extent": 64, "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
}  # fmt: skip


def _inkling2(name: str, **text: int) -> Checkpoint:
    named = {"image_token": "<|image|>"}
    tokenizer = byte_tokenizer(chatml("<|image|>"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    tower = {**ENCODER, "patch_size": 20, "posemb_grid_size": 8, "projection_hidden_dim": 48, "text_hidden_size": 64}
    config = getattr(transformers, name)(
        text_config=decoder(
            tokenizer, unpadded_vocab_size=len(tokenizer), n_layers_per_attn_res_block=1, **INKLING, **text
        ),
        vision_config=tower,
        image_token_id=tokenizer.image_token_id,
    )
    return config, processor_of("Inkling2Processor", tokenizer, transformers.Inkling2ImageProcessor())


def inkling2() -> Checkpoint:
    """Relative positions, convolutions beside attention, and residuals between blocks of layers."""
    return _inkling2("Inkling2Config")


def inkling2_loop() -> Checkpoint:
    """A part of the layers is run several times."""
    loop = {"loop_layer_index_start": 1, "loop_layer_index_end": 2, "loop_num_passes": 2, "loop_gate_rank": 4}
    return _inkling2("Inkling2LoopConfig", **loop)


def inkling_mm_model() -> Checkpoint:
    """Patches of 40 pixels; sounds are tokens of their own."""
    special = ("<|im_start|>", "<|content_image|>", "<|content_audio_input|>")
    named = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    tokenizer = byte_tokenizer(chatml("<|content_image|><|image|>"), "<|im_end|>", "<|endoftext|>", special, **named)
    start, sound = tokenizer.convert_tokens_to_ids(list(special[1:]))
    config = transformers.InklingConfig(
        text_config=decoder(tokenizer, n_shared_experts=1, **INKLING),
        vision_config={"text_hidden_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16, "text_hidden_size": 64},
        image_token_id=tokenizer.image_token_id, audio_token_id=tokenizer.audio_token_id, image_bos_token_id=start,
        audio_bos_token_id=sound,
    )  # fmt: skip
    processor = transformers.InklingProcessor(
        transformers.InklingFeatureExtractor(feature_size=8), transformers.InklingImageProcessor(), tokenizer,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return config, processor


def gemma4_unified() -> Checkpoint:
    """Patches enter the decoder through one layer; the audio does too."""
    template = chat_template(
        "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
        "<|image|>", "<turn|>\n", "<|turn>model\n", start="<bos>",
    )  # fmt: skip
    media = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    audio = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer = byte_tokenizer(
        template, "<eos>", "<pad>", ("<|turn>", "<turn|>", "<|video|>"), bos="<bos>", **media, **audio
    )
    config = transformers.Gemma4UnifiedConfig(
        text_config=decoder(tokenizer, rope_parameters=None, head_dim=16, global_head_dim=32, **WINDOW),
        vision_config={"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32},
        audio_config={"audio_embed_dim": 16},
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("image", "boi", "eoi", "audio")},
        boa_token_id=tokenizer.boa_token_id, eoa_token_index=tokenizer.eoa_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )  # fmt: skip
    processor = transformers.Gemma4UnifiedProcessor(
        transformers.Gemma4UnifiedAudioFeatureExtractor(feature_size=16),
        transformers.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70), tokenizer,
        transformers.Gemma4UnifiedVideoProcessor(patch_size=4, max_soft_tokens=70), tokenizer.chat_template,
        image_seq_length=70,
    )  # fmt: skip
    return config, processor


def pp_chart2table() -> Checkpoint:
    """GOT-OCR2's model; the chat template writes all tokens of an image, and no prompt is without one."""
    special = ("<|im_start|>", "<img>", "</img>", "<imgpad>")
    template = chatml("<img>" + "<imgpad>" * 16 + "</img>\n")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<|endoftext|>", special)
    tower = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 4,
        "global_attn_indexes": [1], "mlp_dim": 48, "image_size": 64, "patch_size": 4,
    }  # fmt: skip
    config = transformers.PPChart2TableConfig(
        text_config=decoder(tokenizer, model_type="qwen2"), vision_config=tower,
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"), image_seq_length=16, tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.PPChart2TableImageProcessor(size={"height": 64, "width": 64})
    return config, processor_of("PPChart2TableProcessor", tokenizer, images)


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        minimax_m3_vl, muse_glimmer, muse_spark, step3p7, dots3_note, inkling2, inkling2_loop,
        inkling_mm_model, gemma4_unified, pp_chart2table,
    )
    if family.__name__ in transformers.CONFIG_MAPPING
}  # fmt: skip
