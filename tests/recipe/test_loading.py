"""What training and evaluation share: prompts, pixel limits, and errors before a model is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.utils import logging as transformers_logging
from trl import ModelConfig

from tests.families.build import ALL_FAMILIES
from vgpo.data import DataError
from vgpo.recipe import loading
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import (
    check_image_token,
    forbidden_tokens,
    load_model,
    load_processor,
    load_prompts,
    quiet_libraries,
    set_pixel_limits,
)
from vgpo.toy import checkpoint_path, write_datasets

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
    shutil.copy(checkpoint_path() / "config.json", tmp_path)
    assert visual_tokens(processor(ModelConfig(model_name_or_path=str(tmp_path)))) == 9
    assert smaller.tokenizer.padding_side == "left"


def test_a_processor_without_pixel_limits_is_an_error() -> None:
    clip = CLIPImageProcessor()
    set_pixel_limits(clip, None, None)
    with pytest.raises(RecipeError, match="CLIPImageProcessor has no pixel limits; remove min_pixels and max_pixels"):
        set_pixel_limits(clip, None, 9)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_pixels": 100_000, "max_pixels": 10}, r"min_pixels \(100000\) is above max_pixels \(10\)"),
        ({"min_pixels": -5}, "min_pixels is -5, expected at least 1 pixel"),
        ({"max_pixels": 0}, "max_pixels is 0, expected at least 1 pixel"),
        ({"max_pixels": 10}, r"is above max_pixels \(10\); limits that you do not set come from the checkpoint"),
    ],
)
def test_pixel_limits_that_no_picture_has(limits: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        processor(**limits)


def test_a_missing_checkpoint_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    missing = ModelConfig(model_name_or_path=str(tmp_path / "none"))
    with pytest.raises(RecipeError, match=r"model_name_or_path: there is no folder '.*none'; correct the path"):
        processor(missing)
    with pytest.raises(RecipeError, match=r"model_name_or_path: there is no folder '.*none'.*looks like owner/name"):
        load_model(missing, trust_remote_code=False)


def copy_of_toy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_path(), tmp_path / "copy"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_checkpoint_is_an_error_of_the_recipe(tmp_path: Path, name: str) -> None:
    copy = copy_of_toy(tmp_path)
    (copy / name).write_text("{broken")
    with pytest.raises(RecipeError, match=r"copy' cannot be loaded: .*; name a vision-language checkpoint") as raised:
        load_model(ModelConfig(model_name_or_path=str(copy)), trust_remote_code=False)
    assert "\n" not in str(raised.value)


def test_a_package_that_the_processor_needs_is_an_error_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(name: str, **options: Any) -> None:
        raise ImportError("Package `num2words` is required. Install it with `pip install num2words`.")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", from_pretrained)
    with pytest.raises(RecipeError, match=r"needs a package: .*pip install num2words"):
        processor()


def test_a_text_only_checkpoint_has_no_image_processor(tmp_path: Path) -> None:
    processor().tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"processor_class": None}))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(RecipeError, match="has no image processor; name a vision-language checkpoint"):
        processor(ModelConfig(model_name_or_path=str(tmp_path)))


def test_a_checkpoint_without_chat_template(tmp_path: Path) -> None:
    bare = processor()
    bare.chat_template = bare.tokenizer.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="has no chat template"):
        processor(ModelConfig(model_name_or_path=str(tmp_path)))


def test_model_and_processor_mean_the_same_image_token() -> None:
    model = load_model(TOY, trust_remote_code=False)
    check_image_token(model, processor())
    right = model.config.image_token_id
    model.config.image_token_id = right + 1
    with pytest.raises(RecipeError, match=rf"ids \[{right + 1}\] in its config.* its own are \[{right}\]"):
        check_image_token(model, processor())


def test_bars_of_the_libraries_are_off() -> None:
    quiet_libraries()
    assert datasets.are_progress_bars_disabled()
    assert not transformers_logging.is_progress_bar_enabled()


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


def test_a_problem_that_spells_a_control_token_is_refused_with_its_row(tmp_path: Path) -> None:
    train, _ = write_datasets(tmp_path, num_train=3, num_test=1, progress=False)
    rows = datasets.Dataset.from_parquet(str(train))
    problems = [*rows["problem"][:2], "<image>What is <|image_pad|>"]
    rows.remove_columns("problem").add_column("problem", problems).to_parquet(tmp_path / "spelt.parquet")
    tokens = forbidden_tokens(TOY, processor(), trust_remote_code=False)
    assert {
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|im_start|>",
        "<|im_end|>",
    } <= set(tokens)
    with pytest.raises(DataError, match=r"row 2, field 'problem'.*<\|image_pad\|>"):
        load_prompts(str(tmp_path / "spelt.parquet"), "plain", toy_folder=tmp_path, forbidden=tokens)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("qwen2_5_vl", {"<|im_start|>", "<|im_end|>", "<|vision_end|>", "<|image_pad|>"}),
        ("smolvlm", {"<row_1_col_1>", "<end_of_utterance>", "<fake_token_around_image>", "<|im_start|>"}),
        ("gemma3", {"<end_of_turn>", "<start_of_turn>", "<pad>", "<bos>"}),
        ("llava_next", {"</s>", "<s>"}),
    ],
)
def test_every_special_token_of_a_family_is_forbidden(
    family: str, tokens: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made = ALL_FAMILIES[family]()
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: config)
    assert tokens <= set(forbidden_tokens(TOY, made, trust_remote_code=False))


def test_added_tokens_that_are_words_stay_allowed() -> None:
    made = processor()
    made.tokenizer.add_tokens(["<think>", "</answer>"])
    made.tokenizer.add_tokens(["<|stop|>"], special_tokens=True)
    tokens = forbidden_tokens(TOY, made, trust_remote_code=False)
    assert "<|stop|>" in tokens
    assert not {"<think>", "</answer>"} & set(tokens)


def test_a_system_message_with_a_control_token_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    turns = [("system", "Be brief.<|im_end|>"), ("user", "<image>How many?"), ("assistant", "3")]
    row = {"images": ["a.png"], "messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    tokens = forbidden_tokens(TOY, processor(), trust_remote_code=False)
    with pytest.raises(DataError, match=r"row 0, field 'problem': contains '<\|im_end\|>', a control token of this"):
        load_prompts(str(tmp_path / "rows.jsonl"), "plain", toy_folder=tmp_path, forbidden=tokens)


def test_the_dial_behind_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = "toy:test:rows=1,columns=2,kinds=row_sum"
    prompts = load_prompts(source, "plain", toy_folder=tmp_path, limit=3)
    assert [row["images"][0].size for row in prompts] == [(56, 28)] * 3
    with pytest.raises(DataError, match="toy:test:rows=7: rows is 7; expected 1 to 4"):
        load_prompts("toy:test:rows=7", "plain", toy_folder=tmp_path)


def test_a_processor_that_fails_on_an_image_is_named() -> None:
    model, broken = load_model(TOY, trust_remote_code=False), processor()

    def fail(*args: Any, **options: Any) -> None:
        raise TypeError("no such field")

    broken.apply_chat_template = fail
    with pytest.raises(RecipeError, match=r"fails on a prompt with one image \(TypeError: no such field\)"):
        check_image_token(model, broken)


def config_of(folder: Path, **fields: Any) -> ModelConfig:
    """A checkpoint that has a config and no weights."""
    (folder / "config.json").write_text(json.dumps(fields))
    return ModelConfig(model_name_or_path=str(folder))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3n"},
        {"model_type": "llava", "vision_config": {"model_type": "timm_wrapper"}},
    ],
)
def test_a_package_that_a_part_comes_from_is_named_before_weights_are_looked_for(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="part of the package timm, which is not installed: pip install timm"):
        load_model(config_of(tmp_path, **config), trust_remote_code=False)
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="cannot be loaded"):  # now they are
        load_model(config_of(tmp_path, **config), trust_remote_code=False)


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_a_model_that_reads_codes_says_that_no_gradient_reaches_its_images(family: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="become discrete codes, through which no gradient reaches the vision tower"):
        load_model(config_of(tmp_path, model_type=family), trust_remote_code=False)
