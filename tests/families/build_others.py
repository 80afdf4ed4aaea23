"""Checkpoints of families with a layout of their own: prefix attention, experts, soft-capping, cross attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    AriaConfig,
    AriaImageProcessor,
    AriaProcessor,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessor,
    ChameleonConfig,
    ChameleonImageProcessor,
    ChameleonProcessor,
    CLIPImageProcessor,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    Emu3Config,
    Emu3ImageProcessor,
    Emu3Processor,
    Florence2Config,
    Florence2Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    IdeficsConfig,
    IdeficsImageProcessor,
    IdeficsProcessor,
    JanusConfig,
    JanusImageProcessor,
    JanusProcessor,
    Llama4Config,
    Llama4ImageProcessor,
    Llama4Processor,
    MllamaConfig,
    MllamaImageProcessor,
    MllamaProcessor,
    Ovis2Config,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from tests.families.tiny import ENCODER, Checkpoint, byte_tokenizer, chat_template, chatml, decoder

SIGLIP = {**ENCODER, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}


def _paligemma(model_type: str, **text: Any) -> Checkpoint:
    template = chat_template("", "<image>", "", "")
    tokenizer = byte_tokenizer(template, "<eos>", "<pad>", bos="<bos>")
    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    # Adds `<image>` and the location and segmentation tokens to the tokenizer.
    processor = PaliGemmaProcessor(images, tokenizer, tokenizer.chat_template)
    config = PaliGemmaConfig(
        text_config=decoder(tokenizer, model_type=model_type, head_dim=16, **text),
        vision_config=SIGLIP,
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return config, processor


def paligemma() -> Checkpoint:
    """The prompt attends both ways, the reply does not; one key-value head."""
    return _paligemma("gemma", num_key_value_heads=1)


def paligemma2() -> Checkpoint:
    """Gemma 2 decoder: scores and logits are soft-capped, layers alternate sliding and full attention."""
    return _paligemma(
        "gemma2",
        query_pre_attn_scalar=16,
        sliding_window=8,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    )


def gemma4() -> Checkpoint:
    """Audio tower, embeddings of each layer, shared keys and values, and logit soft-capping."""
    template = chat_template(
        "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
        "<|image|>",
        "<turn|>\n",
        "<|turn>model\n",
        start="<bos>",
    )
    media = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    audio = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    turns = ("<|turn>", "<turn|>", "<|video|>")
    tokenizer = byte_tokenizer(template, "<eos>", "<pad>", turns, bos="<bos>", **media, **audio)
    layers = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma4Config(
        text_config=decoder(
            tokenizer,
            rope_parameters=None,
            num_hidden_layers=4,
            layer_types=layers,
            sliding_window=8,
            head_dim=16,
            global_head_dim=32,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=len(tokenizer),
            hidden_size_per_layer_input=16,
            final_logit_softcapping=30.0,
        ),
        vision_config={
            **ENCODER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 1024,
        },
        audio_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "subsampling_conv_channels": [8, 4],
            "output_proj_dims": 48,
        },
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("image", "boi", "eoi", "audio")},
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )  # fmt: skip
    images = Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70)
    videos = Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70)
    sounds = Gemma4AudioFeatureExtractor()
    processor = Gemma4Processor(sounds, images, tokenizer, videos, tokenizer.chat_template, image_seq_length=70)
    return config, processor


def llama4() -> Checkpoint:
    """Experts and chunked attention; `<|patch|>` holds the features, while the processor's image token is another."""
    template = chat_template(
        "<|header_start|>{{ message['role'] }}<|header_end|>\n\n",
        "<|image|>",
        "<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n",
        start="<|begin_of_text|>",
    )
    names = ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|image|>", "<|tile_x_separator|>")
    special = ("<|header_start|>", "<|header_end|>", *names, "<|tile_y_separator|>")
    tokenizer = byte_tokenizer(template, "<|eot|>", "<|finetune_right_pad|>", special, bos="<|begin_of_text|>")
    ids = dict(zip(("boi_token_index", "eoi_token_index", "image_token_index"), names[:3], strict=True))
    config = Llama4Config(
        text_config=decoder(
            tokenizer,
            head_dim=16,
            intermediate_size=48,
            intermediate_size_mlp=96,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            router_aux_loss_coef=0.001,
            attention_chunk_size=32,
            no_rope_layers=[1, 1, 0],
            floor_scale=16,
        ),
        vision_config={
            **ENCODER,
            "image_size": 56,
            "patch_size": 14,
            # Pixel shuffle joins four patches of 32.
            "intermediate_size": 128,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "vision_output_dim": 48,
        },
        **{key: tokenizer.convert_tokens_to_ids(name) for key, name in ids.items()},
    )
    images = Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    return config, Llama4Processor(images, tokenizer, chat_template=tokenizer.chat_template)


def _deepseek_tokenizer(**named: str) -> PreTrainedTokenizerFast:
    turn = "{{ 'User: ' if message['role'] == 'user' else 'Assistant: ' }}"
    template = chat_template(turn, "<image_placeholder>", "\n\n", "Assistant:", start="<｜begin▁of▁sentence｜>")
    names = {"image_token": "<image_placeholder>", **named}
    return byte_tokenizer(template, "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", bos="<｜begin▁of▁sentence｜>", **names)


def deepseek_vl() -> Checkpoint:
    tokenizer = _deepseek_tokenizer()
    config = DeepseekVLConfig(
        text_config=decoder(tokenizer, model_type="llama"),
        vision_config=SIGLIP,
        image_token_id=tokenizer.image_token_id,
    )
    images = DeepseekVLImageProcessor(size={"height": 56, "width": 56})
    return config, DeepseekVLProcessor(images, tokenizer, tokenizer.chat_template, num_image_tokens=16)


def deepseek_vl_hybrid() -> Checkpoint:
    """Two towers see the same image at two sizes; their features are joined token by token."""
    tokenizer = _deepseek_tokenizer()
    config = DeepseekVLHybridConfig(
        text_config=decoder(tokenizer, model_type="llama"),
        vision_config=SIGLIP,
        high_res_vision_config={
            "model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 256, "patch_size": 16, "window_size": 4,
            "global_attn_indexes": [1], "mlp_dim": 48,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    images = DeepseekVLHybridImageProcessor(
        size={"height": 56, "width": 56}, high_res_size={"height": 256, "width": 256}
    )
    return config, DeepseekVLHybridProcessor(images, tokenizer, tokenizer.chat_template, num_image_tokens=16)


def janus() -> Checkpoint:
    """Also holds the codebook that draws images."""
    tokenizer = _deepseek_tokenizer(boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    config = JanusConfig(
        text_config=decoder(tokenizer, model_type="llama"),
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0, "image_size": 56,
            "patch_size": 14, "projection_dim": 64, "num_image_tokens": 16,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 32, "latent_channels": 32, "base_channels": 32,
            "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 64, "image_token_embed_dim": 64,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    images = JanusImageProcessor(size={"height": 56, "width": 56})
    return config, JanusProcessor(images, tokenizer, tokenizer.chat_template, num_image_tokens=16)


def aria() -> Checkpoint:
    """Experts; learned queries read the patches of an image of 980 pixels, so the patches are large here."""
    template = chatml("<|img|>")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<pad>", ("<|im_start|>",), bos="<s>", image_token="<|img|>")
    config = AriaConfig(
        text_config=decoder(tokenizer, intermediate_size=48, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision_config={**ENCODER, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 70},
        projector_patch_to_query_dict={49: 4, 196: 8},
        image_token_index=tokenizer.image_token_id,
    )
    sizes = {490: 4, 980: 8}
    return config, AriaProcessor(AriaImageProcessor(), tokenizer, tokenizer.chat_template, size_conversion=sizes)


def mllama() -> Checkpoint:
    """The image enters by cross attention; its token lies past the vocabulary of the head."""
    template = chat_template(
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n",
        "<|image|>",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        start="<|begin_of_text|>",
    )
    special = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
    tokenizer = byte_tokenizer(template, "<|eot_id|>", "<|finetune_right_pad_id|>", special, bos="<|begin_of_text|>")
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<|image|>"], special_tokens=True)
    config = MllamaConfig(
        text_config=decoder(tokenizer, vocab_size=vocabulary, cross_attention_layers=[1]),
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 28, "patch_size": 14, "intermediate_layers_indices": [0, 1],
            # The last layer and two others side by side.
            "vision_output_dim": 96,
        },
        image_token_index=vocabulary,
    )  # fmt: skip
    images = MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4)
    return config, MllamaProcessor(images, tokenizer, tokenizer.chat_template)


def ovis2() -> Checkpoint:
    """A patch is a mix of rows of a visual vocabulary; the marks around tiles take their rows from it too."""
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    special = ("<|im_start|>", "<image>", "<IMG_ATOM>", *marks)
    tokenizer = byte_tokenizer(chatml("<image>\n"), "<|im_end|>", "<|endoftext|>", special)
    config = Ovis2Config(
        text_config=decoder(tokenizer, model_type="qwen2"),
        vision_config={**ENCODER, "image_size": 56, "patch_size": 14, "vocab_size": 64, "hidden_stride": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(marks)),
        vocab_size=len(tokenizer),
        hidden_size=64,
    )
    images = Ovis2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    return config, Ovis2Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=4)


def emu3() -> Checkpoint:
    """The image becomes tokens of the vocabulary, one row after another, each closed by a token of its own."""
    template = chat_template("{{ message['role'] | upper }}: ", "<image>", " ", "ASSISTANT:")
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    special = ("<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(32)))
    tokenizer = byte_tokenizer(template, "<|extra_204|>", "<|endoftext|>", special, bos="<|extra_203|>", **named)
    config = Emu3Config(
        text_config=decoder(tokenizer, attention_dropout=0.1),
        vq_config={
            "codebook_size": 32, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "num_res_blocks": 1,
            "channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [3], "hidden_size": 32,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    images = Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, spatial_factor=8)
    return config, Emu3Processor(images, tokenizer, chat_template=tokenizer.chat_template)


def chameleon() -> Checkpoint:
    """The image becomes tokens of the vocabulary, whose logits are masked; loading drops the chat template."""
    codes = ("".join(chr(ord("A") + int(digit)) for digit in str(code)) for code in range(32))
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    special = ("<reserved08706>", *(f"IMGIMG{code}Z" for code in codes))
    template = chat_template("", "<image>", "", "")
    tokenizer = byte_tokenizer(template, "</s>", "<pad>", special, bos="<s>", **named)
    tokenizer.sep_token = "<reserved08706>"
    config = ChameleonConfig(
        **decoder(tokenizer),
        vq_config={
            "embed_dim": 8, "num_embeddings": 32, "latent_channels": 32, "resolution": 28, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    images = ChameleonImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = ChameleonProcessor(images, tokenizer, image_seq_length=49)
    processor.chat_template = template
    return config, processor


def blip_2() -> Checkpoint:
    """Queries read the image; their tokens come before the text and are not written by the chat template."""
    tokenizer = byte_tokenizer(chat_template("", "", "", ""), "</s>", "<pad>", bos="<s>")
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    # Adds `<image>` to the tokenizer.
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    text = {
        "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 64, "word_embed_proj_dim": 64,
        "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = Blip2Config(
        text_config=text,
        vision_config={**ENCODER, "image_size": 28, "patch_size": 14},
        qformer_config=dict(ENCODER),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor.chat_template = tokenizer.chat_template
    return config, processor


def florence2() -> Checkpoint:
    """Encoder and decoder; the processor puts the image before the prompt in the encoder."""
    template = chat_template("", "", "", "")
    tokenizer = byte_tokenizer(template, "</s>", "<pad>", bos="<s>", image_token="<image>")
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "max_position_embeddings": 1024, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text,
        vision_config={
            "depths": [1, 1, 1, 1], "embed_dim": [32] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4,
            "window_size": 4, "projection_dim": 64,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    processor = Florence2Processor(images, tokenizer)
    processor.chat_template = template
    return config, processor


def idefics() -> Checkpoint:
    """The image enters by gated cross attention; its two tokens have an embedding of their own, past the others."""
    tokenizer = byte_tokenizer(chat_template("", "", "", ""), "</s>", "<unk>", bos="<s>")
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["<fake_token_around_image>", "<image>"], special_tokens=True)
    text = decoder(tokenizer, vocab_size=vocabulary, additional_vocab_size=2)
    del text["num_key_value_heads"]
    config = IdeficsConfig(
        **text,
        cross_layer_interval=1,
        use_resampler=True,
        vision_config={
            "embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16,
        },
    )  # fmt: skip
    processor = IdeficsProcessor(IdeficsImageProcessor(image_size=28), tokenizer, image_size=28)
    processor.chat_template = tokenizer.chat_template
    return config, processor


FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        paligemma,
        paligemma2,
        gemma4,
        llama4,
        deepseek_vl,
        deepseek_vl_hybrid,
        janus,
        aria,
        mllama,
        ovis2,
        emu3,
        chameleon,
        blip_2,
        florence2,
        idefics,
    )
}
