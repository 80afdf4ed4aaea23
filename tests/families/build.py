"""Checkpoints of every family with small random weights, in the format that the hub's checkpoints have.

A folder holds configuration, weights, processor, tokenizer and chat template, and loads by
`AutoModelForImageTextToText` and `AutoProcessor` as a real one does. Token names are the family's own; the chat
template is a plain one in its style. Every family has grouped-query attention, and images of 28 to 112 pixels
become 1 to 64 visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    BatchFeature,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.families import build_largest, build_llava, build_newer, build_newest, build_others, build_qwen
from tests.families.tiny import (
    ENCODER,
    MROPE,
    PINPOINTS,
    Checkpoint,
    byte_tokenizer,
    chat_template,
    chatml,
    decoder,
    pixels,
    qwen_vl_tokenizer,
)

Prompt = tuple[str, Sequence[Image.Image]]
LoadFamily = Callable[..., tuple[PreTrainedModel, ProcessorMixin]]


def qwen2_vl() -> Checkpoint:
    tokenizer, ids = qwen_vl_tokenizer()
    config = Qwen2VLConfig(
        text_config=decoder(tokenizer, rope_parameters=dict(MROPE)),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2},
        **ids,
    )
    images, videos = Qwen2VLImageProcessor(size=pixels(28)), Qwen2VLVideoProcessor(size=pixels(28))
    return config, Qwen2VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def qwen2_5_vl() -> Checkpoint:
    tokenizer, ids = qwen_vl_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(
        text_config=decoder(tokenizer, rope_parameters=dict(MROPE)),
        # Windows of two by two cells, so that an image of three holds several.
        vision_config={**vision, "window_size": 56, "fullatt_block_indexes": [1]},
        **ids,
    )
    images, videos = Qwen2VLImageProcessor(size=pixels(28)), Qwen2VLVideoProcessor(size=pixels(28))
    return config, Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def qwen3_vl() -> Checkpoint:
    """Features of two vision layers are added to the decoder's first two layers (deepstack)."""
    tokenizer, ids = qwen_vl_tokenizer()
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen3VLConfig(
        text_config=decoder(tokenizer, head_dim=16, rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **ids,
    )
    images = Qwen2VLImageProcessor(size=pixels(32), patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    videos = Qwen3VLVideoProcessor(size=pixels(32))
    return config, Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def qwen3_5() -> Checkpoint:
    """Two of three decoder layers carry a state from token to token in place of attention."""
    tokenizer, ids = qwen_vl_tokenizer()
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 16, "value_head_dim": 16}
    config = Qwen3_5Config(
        text_config=decoder(
            tokenizer,
            head_dim=16,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            **{f"linear_{name}": value for name, value in linear.items()},
        ),
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 64,
        },
        **ids,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(size=pixels(32), patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    videos = Qwen3VLVideoProcessor(size=pixels(32))
    return config, Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def internvl() -> Checkpoint:
    """Up to four tiles and, where there are several, a thumbnail; four visual tokens each. The head is tied."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    template = chatml("<IMG_CONTEXT>\n")
    tokenizer = byte_tokenizer(template, "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), **named)
    config = InternVLConfig(
        text_config=decoder(tokenizer, model_type="qwen2"),
        vision_config={**ENCODER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    videos = InternVLVideoProcessor(size={"height": 56, "width": 56})
    return config, InternVLProcessor(images, tokenizer, videos, 4, chat_template=tokenizer.chat_template)


def llava_onevision() -> Checkpoint:
    """An image alone becomes tiles of 28 pixels by its shape ("anyres"); one among several is a single tile."""
    tokenizer = byte_tokenizer(
        chatml("<image>\n"), "<|im_end|>", "<|endoftext|>", ("<|im_start|>", "<image>", "<video>")
    )
    config = LlavaOnevisionConfig(
        text_config=decoder(tokenizer, model_type="qwen2"),
        vision_config={
            **ENCODER,
            "model_type": "siglip_vision_model",
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def _idefics_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of Idefics3 and SmolVLM, with a token for each place of a tile."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    template = chat_template(
        "{{ message['role'] | capitalize }}: ", "<image>", "<end_of_utterance>\n", "Assistant:", start="<|im_start|>"
    )
    return byte_tokenizer(template, "<end_of_utterance>", "<|im_end|>", special, bos="<|im_start|>")


# The longer side becomes 112 pixels, cut into tiles of 56; each tile and the whole are four visual tokens.
IDEFICS_SIZES = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}


def _idefics_config(config_class: type, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return config_class(
        text_config=decoder(tokenizer, model_type="llama"),
        vision_config={**ENCODER, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )


def smolvlm() -> Checkpoint:
    tokenizer = _idefics_tokenizer()
    images, videos = SmolVLMImageProcessor(**IDEFICS_SIZES), SmolVLMVideoProcessor(**IDEFICS_SIZES)
    processor = SmolVLMProcessor(images, tokenizer, videos, 4, chat_template=tokenizer.chat_template)
    return _idefics_config(SmolVLMConfig, tokenizer), processor


def idefics3() -> Checkpoint:
    tokenizer = _idefics_tokenizer()
    images = Idefics3ImageProcessor(**IDEFICS_SIZES)
    processor = Idefics3Processor(images, tokenizer, 4, chat_template=tokenizer.chat_template)
    return _idefics_config(Idefics3Config, tokenizer), processor


def gemma3() -> Checkpoint:
    """Sliding windows of eight tokens in all layers but the last; images attend both ways within themselves."""
    template = chat_template(
        "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        start="<bos>",
    )
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    turns = ("<start_of_turn>", "<end_of_turn>")
    tokenizer = byte_tokenizer(template, "<eos>", "<pad>", turns, bos="<bos>", **named)
    layers = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 8}
    config = Gemma3Config(
        text_config=decoder(tokenizer, rope_parameters=None, head_dim=16, query_pre_attn_scalar=16, **layers),
        vision_config={
            **ENCODER,
            "model_type": "siglip_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    return config, Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=4)


def llava_next() -> Checkpoint:
    """Vicuna's turns and CLIP's next-to-last layer without its class token; tiles by the image's shape."""
    template = chat_template(
        "{{ message['role'] | upper }}: ",
        "<image>\n",
        "{{ ' ' if message['role'] == 'user' else '</s>' }}",
        "ASSISTANT:",
    )
    tokenizer = byte_tokenizer(template, "</s>", "<unk>", ("<image>",), bos="<s>")
    config = LlavaNextConfig(
        text_config=decoder(tokenizer, model_type="llama"),
        vision_config={**ENCODER, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=4,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return config, processor


# By the configuration's `model_type`.
FAMILIES: dict[str, Callable[[], Checkpoint]] = {
    family.__name__: family
    for family in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_5,
        internvl,
        llava_onevision,
        smolvlm,
        idefics3,
        llava_next,
        gemma3,
    )
}


# Those above, on which every check is run, and all that are tried in two steps.
ALL_FAMILIES = {
    **FAMILIES, **build_llava.FAMILIES, **build_qwen.FAMILIES, **build_others.FAMILIES, **build_newer.FAMILIES,
    **build_newest.FAMILIES, **build_largest.FAMILIES,
}  # fmt: skip
# Families, by `model_type`, that are refused by their configuration alone: there is nothing else to build of them.
_CONFIG_ONLY = (
    "apertus1p5", "blip", "diffusion_gemma", "evolla", "fast_vlm", "fuyu", "gemma3n", "git", "hunyuan_vl",
    "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5", "mistral4", "mistral_large4", "nemotron_h_omni",
    "perception_lm", "pi0", "pix2struct", "pp_formulanet", "shieldgemma2", "t5gemma2", "udop", "unlimited_ocr",
    "vision-encoder-decoder",
)  # fmt: skip
CONFIG_ONLY = tuple(name for name in _CONFIG_ONLY if name in CONFIG_MAPPING)
TRIED = (*ALL_FAMILIES, *CONFIG_ONLY)


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near one, and no bias or scale at its neutral value.

    With a family's own small initial weights an image changes the logits by less than rounding would hide.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * noise)


def build_checkpoint(name: str, folder: Path, seed: int = 0) -> None:
    """Write the checkpoint of family `name` to `folder`; the same seed gives the same weights."""
    if name in CONFIG_ONLY:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": name}), encoding="utf-8")
        return
    write_checkpoint(ALL_FAMILIES[name], folder, seed)


def write_checkpoint(build: Callable[[], Checkpoint], folder: Path, seed: int = 0) -> None:
    """As `build_checkpoint`, for a function that makes a configuration and a processor."""
    config, processor = build()
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    draw_weights(model, seed)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode_prompts(processor: ProcessorMixin, prompts: Sequence[Prompt]) -> list[BatchFeature]:
    """What the processor gives for each prompt alone, unpadded: `input_ids` (1, L), image tensors and the rest.

    A prompt is one user turn: its images first, then its text, then the opening of the reply.
    """
    encoded = []
    for text, images in prompts:
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        encoded.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
    return encoded


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of random colours, so that no two patches of it look alike."""
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())
