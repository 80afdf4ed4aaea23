"""What cannot be frozen or adapted is refused, and the table at the start of a run says what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from rich.console import Console
from trl import ModelConfig

from tests.families.build import FAMILIES, LoadFamily
from tests.families.checks import part_by_name
from vgpo.policy.parts import (
    TRAINED,
    count_parameters,
    freeze_parts,
    lora_targets,
    parameter_table,
    part_of_parameters,
)
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import adapter_config
from vgpo.recipe.recipe import load_recipe
from vgpo.trl import VGPOConfig

pytest_plugins = ["tests.families.fixtures"]

RECIPE = "model_name_or_path: toy\ntrain_data: data.parquet\nuse_cpu: true\nbf16: false\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_the_part_that_its_name_tells(family: str, load_family: LoadFamily) -> None:
    model, _ = load_family(family)
    assert part_of_parameters(model) == {name: part_by_name(name) for name, _ in model.named_parameters()}
    counts = count_parameters(model)
    assert sum(count.all for count in counts.values()) == sum(p.numel() for p in model.parameters())
    # A tied head is not a separate parameter.
    assert all(count.trainable == count.all > 0 for part, count in counts.items() if part in TRAINED)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["visoin"], r"unknown part 'visoin' \(did you mean 'vision'\?\), expected some of"),
        (["head"], "unknown part 'head', expected some of"),
        ("vision", r"is a str, expected a list: freeze=\['vision'\]"),
        (["vision", "language_model", "projector"], "leaves nothing to train"),
    ],
)
def test_a_wrong_freeze_is_refused_before_a_model_is_loaded(freeze: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        VGPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, freeze=freeze)


def test_a_model_with_adapters_is_refused(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_vl")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="no effect on a model with adapters"):
        freeze_parts(adapted, ["vision"])


def test_a_part_that_a_model_lacks_is_refused(load_family: LoadFamily) -> None:
    model, _ = load_family("internvl")
    model.model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(
        ValueError, match=r"InternVLForConditionalGeneration has no parameters in the part 'projector'"
    ):
        freeze_parts(model, ["projector"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("lora_vision: true", "lora_vision has no effect without use_peft; set use_peft: true"),
        ("use_peft: true\nfreeze: [vision]", r"freeze \(\['vision'\]\) has no effect with use_peft"),
        ("freeze: [projecter]", "did you mean 'projector'"),
    ],
)
def test_a_recipe_that_contradicts_itself(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + lines)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_recipe_freezes_one_part_or_several(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "freeze: vision")
    assert load_recipe(path).config.freeze == ["vision"]
    assert load_recipe(path, ["--freeze", "vision", "projector"]).config.freeze == ["vision", "projector"]


@pytest.mark.parametrize("names", [["q_proj"], ["q_proj", "v_proj"]])
def test_layers_of_a_name_are_those_of_the_decoder(names: list[str], load_family: LoadFamily) -> None:
    # The vision towers of these have layers called q_proj too.
    for family in ("llava_next", "internvl", "idefics3"):
        model, _ = load_family(family)
        config = adapter_config(ModelConfig(use_peft=True, lora_target_modules=list(names)), model, vision=False)
        adapted = get_peft_model(model, config)
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        layers = {name.partition(".lora_")[0] for name in trained}
        assert all(part_by_name(layer) == "language_model" for layer in layers)
        assert len(layers) == 3 * len(names)


def test_all_linear_is_every_layer_of_the_decoder(load_family: LoadFamily) -> None:
    model, _ = load_family("llava_next")
    config = adapter_config(ModelConfig(use_peft=True, lora_target_modules=["all-linear"]), model, vision=False)
    assert set(config.target_modules) == set(lora_targets(model))
    assert adapter_config(ModelConfig(), model, vision=False) is None


def test_an_unknown_layer_is_refused(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_vl")
    with pytest.raises(RecipeError, match=r"No linear layer of \['language_model'\] is called 'query'; there are \["):
        adapter_config(ModelConfig(use_peft=True, lora_target_modules=["query"]), model, vision=False)
    # A layer of the vision tower.
    with pytest.raises(RecipeError, match="is called 'qkv'"):
        adapter_config(ModelConfig(use_peft=True, lora_target_modules=["qkv", "q_proj"]), model, vision=False)
    config = adapter_config(ModelConfig(use_peft=True, lora_target_modules=["qkv", "q_proj"]), model, vision=True)
    assert len(config.target_modules) == 2 + 3


def test_the_table_counts_what_is_trained(load_family: LoadFamily) -> None:
    model, _ = load_family("internvl")
    freeze_parts(model, ["vision", "projector"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(parameter_table(model))
    lines = {line[:15].strip(): line[15:].split() for line in capture.get().splitlines()}
    vision = sum(p.numel() for p in model.model.vision_tower.parameters())
    language = sum(p.numel() for p in model.model.language_model.parameters())
    assert lines["vision"] == ["0", f"{vision:,}", "0.00%"]
    assert lines["language model"] == [f"{language:,}", f"{language:,}", "100.00%"]
    assert lines["head"] == ["0", "0", "tied"]
    assert lines["total"][0] == f"{language:,}"


def test_the_head_is_frozen_with_the_language_model(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_vl")
    freeze_parts(model, ["language_model"])
    counts = count_parameters(model)
    assert counts["head"].trainable == counts["language_model"].trainable == 0 < counts["head"].all
    assert counts["vision"].trainable == counts["vision"].all


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_mergers_inside_the_vision_tower_are_projectors(
    family: str, load_family: Callable[..., tuple[Any, Any]]
) -> None:
    model, _ = load_family(family)
    freeze_parts(model, ["vision"])
    trained = {name for name, p in model.model.visual.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.model.visual.named_parameters() if "merger" in name}
    assert trained


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        pytest.param(
            "qwen2_5_omni_thinker",
            {"audio_tower": "audio", "visual.blocks": "vision"},
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.23"), reason="needs transformers 5.23"
            ),
        ),
        ("janus", {"vqmodel": "generation", "generation_": "generation", "aligner": "projector"}),
        ("video_llava", {"video_tower": "vision", "image_tower": "vision"}),
    ],
)
def test_branches_beside_images_and_text_are_parts_of_their_own(
    family: str, parts: dict[str, str], load_family: LoadFamily
) -> None:
    model, _ = load_family(family)
    found = part_of_parameters(model)
    for words, part in parts.items():
        named = {found[name] for name in found if words in name and "generation_aligner" not in name}
        assert named == {part}, words
    freeze_parts(model, ["vision"])
    assert not any(p.requires_grad for name, p in model.named_parameters() if found[name] == "vision")
    if "audio" in parts.values():
        freeze_parts(model, ["audio"])
        assert not any(p.requires_grad for name, p in model.named_parameters() if "audio" in name)
