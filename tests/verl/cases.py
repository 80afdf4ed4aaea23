"""Tiny models, batches and settings of the engine's tests; the test and its worker processes share them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEMPERATURE = 0.9
IMAGE_TOKEN, VIDEO_TOKEN, IMAGE_START = 5, 6, 3  # as in the toy model
FLOAT32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


@dataclass(frozen=True)
class Case:
    """One engine and one pass through it."""

    model: str = "qwen2_5_vl"
    packed: bool = True
    attention: str = "flash_attention_2"  # the stub in flash_attention.py
    model_config: dict[str, Any] = field(default_factory=dict)
    engine_config: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None  # of a micro-batch; None: `rows_per_batch` rows each
    rows_per_batch: int = 2
    rows: tuple[int, ...] = (0, 1, 2, 3)
    flag: bool = True
    stock: bool = False  # verl's own engine
    train: bool = False  # a step of training instead of a pass for log-probabilities
    fault: str = ""  # what `engine_worker` breaks


@dataclass(frozen=True)
class Row:
    """A prompt, which may hold images, and its response."""

    prompt: list[int]
    response: list[int]
    position_ids: Tensor  # (4, L): of the text, and of time, height and width
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None

    @property
    def input_ids(self) -> list[int]:
        return self.prompt + self.response


def make_rows(model: Any) -> list[Row]:
    """Rows of several lengths: one image, two images, none, and one with a visual token in the response."""
    generator = torch.Generator().manual_seed(0)
    return [
        _row(model, generator, grids=[(2, 4)], text=5, response=7),
        _row(model, generator, grids=[(4, 4), (2, 2)], text=9, response=3),
        _row(model, generator, grids=[], text=6, response=9),
        _row(model, generator, grids=[(4, 2)], text=3, response=6, visual_at=2),
    ]


def _row(
    model: Any,
    generator: torch.Generator,
    grids: list[tuple[int, int]],
    text: int,
    response: int,
    visual_at: int | None = None,
) -> Row:
    def words(number: int) -> list[int]:
        return torch.randint(20, 200, (number,), generator=generator).tolist()

    vision = model.config.vision_config
    prompt = words(2)
    for height, width in grids:
        prompt += [IMAGE_START, *[IMAGE_TOKEN] * (height * width // vision.spatial_merge_size**2), 4]
    prompt += words(text)
    answer = words(response)
    if visual_at is not None:
        answer[visual_at] = VIDEO_TOKEN
    text_positions = torch.arange(len(prompt + answer)).expand(4, -1)
    if not grids:
        return Row(prompt, answer, text_positions)
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = sum(height * width for height, width in grids)
    grid_thw = torch.tensor([[1, height, width] for height, width in grids])
    input_ids = torch.tensor([prompt + answer])
    positions, _ = model.model.get_rope_index(input_ids, token_types(input_ids), image_grid_thw=grid_thw)
    positions = torch.cat([text_positions[:1], positions[:, 0]])
    return Row(prompt, answer, positions, torch.randn(patches, size, generator=generator), grid_thw)


def token_types(input_ids: Tensor) -> Tensor:
    """1 at image tokens; the video token of a response stands for text here."""
    return (input_ids == IMAGE_TOKEN).int()


def build_qwen3_vl(folder: Path) -> None:
    """Random weights, large enough for attention and similarity to differ between tokens."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, vision_start_token_id=IMAGE_START,
        vision_end_token_id=4, tie_word_embeddings=False,
    )  # fmt: skip
    _save_random(Qwen3VLForConditionalGeneration, config, folder)


def build_glm4v(folder: Path) -> None:
    """As `build_qwen3_vl`; with tied embeddings, because fsdp2 of verl 0.9.1 runs no other GLM-4.1V."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    config = Glm4vConfig(
        text_config={
            "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 14, "image_size": 112,
        },
        image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, image_start_token_id=IMAGE_START,
        image_end_token_id=4, video_start_token_id=7, video_end_token_id=8, tie_word_embeddings=True,
    )  # fmt: skip
    _save_random(Glm4vForConditionalGeneration, config, folder)


def _save_random(model_class: Any, config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "patch_embed" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


def add_lora(model: str, folder: Path) -> None:
    """An adapter of `model` whose second factor is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(1)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype="float32")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder)
