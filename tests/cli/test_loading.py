"""What training and evaluation share: prompts, pixel limits, and errors before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor
from trl import ModelConfig

from vgpo.commands.loading import load_model, load_processor, load_prompts, set_pixel_limits
from vgpo.commands.recipe import RecipeError
from vgpo.data import DataError
from vgpo.toy import write_datasets

TOY = ModelConfig(model_name_or_path="toy")
PICTURE = {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (112, 112))}]}


def processor(model: ModelConfig = TOY, **limits: int | None) -> Any:
    return load_processor(model, trust_remote_code=False, **{"min_pixels": None, "max_pixels": None, **limits})


def visual_tokens(processor: Any) -> int:
    inputs = processor.apply_chat_template([PICTURE], tokenize=True, return_dict=True, return_tensors="pt")
    return int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())


def test_pixel_limits_are_obeyed_and_saved_with_the_checkpoint(tmp_path: Path) -> None:
    assert visual_tokens(processor()) == 16  # 112 x 112 pixels in cells of 28 x 28
    smaller = processor(max_pixels=28 * 28 * 9)
    assert visual_tokens(smaller) == 9
    assert visual_tokens(processor(min_pixels=28 * 28 * 25)) == 25
    assert visual_tokens(processor()) == 16  # nothing leaks from one processor to the next
    smaller.save_pretrained(tmp_path)
    assert visual_tokens(processor(ModelConfig(model_name_or_path=str(tmp_path)))) == 9
    assert smaller.tokenizer.padding_side == "left"


def test_a_processor_without_pixel_limits_is_an_error() -> None:
    clip = CLIPImageProcessor()
    set_pixel_limits(clip, None, None)
    with pytest.raises(RecipeError, match="CLIPImageProcessor has no pixel limits; remove min_pixels and max_pixels"):
        set_pixel_limits(clip, None, 9)


def test_a_missing_checkpoint_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    missing = ModelConfig(model_name_or_path=str(tmp_path / "none"))
    with pytest.raises(RecipeError, match=r"model_name_or_path: '.*none' cannot be loaded"):
        processor(missing)
    with pytest.raises(RecipeError, match=r"model_name_or_path: '.*none' cannot be loaded"):
        load_model(missing, trust_remote_code=False)


def test_the_first_rows_as_prompts(tmp_path: Path) -> None:
    _, test = write_datasets(tmp_path, num_train=1, num_test=5, progress=False)
    prompts = load_prompts(str(test), "plain", toy_folder=tmp_path, limit=3)
    assert len(prompts) == 3
    assert len(load_prompts(str(test), "plain", toy_folder=tmp_path, limit=9)) == 5
    row = prompts[0]
    assert set(row) >= {"prompt", "images", "problem", "answer"}
    assert row["images"][0].size == (84, 84)


def test_wrong_data_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_prompts(str(tmp_path / "none.parquet"), "plain", toy_folder=tmp_path)
