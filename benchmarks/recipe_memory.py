"""The memory that each recipe for Qwen2.5-VL is estimated to need: `python -m benchmarks.recipe_memory`.

Models are built on the meta device from the sizes that their checkpoints on the hub have: nothing is downloaded and no
weight is allocated.
"""

from dataclasses import astuple, fields
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen2_5_VLConfig

from vgpo.recipe.files import recipe_folder
from vgpo.recipe.loading import adapter_config
from vgpo.recipe.memory import GIB, MemoryEstimate, memory_estimate
from vgpo.recipe.recipe import ON_CPU, Recipe, load_recipe
from vgpo.shared_prompt import why_not_shared

# What config.json of these checkpoints says where the sizes differ.
SIZES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-VL-32B-Instruct": {
        "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
        "intermediate_size": 27648, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
VISION_WIDTHS = {"Qwen/Qwen2.5-VL-32B-Instruct": 3456}  # intermediate_size of the vision tower
VISION_WIDTH = 3420


def qwen2_5_vl(name: str) -> Qwen2_5_VLConfig:
    """The config of a checkpoint, as far as sizes go."""
    text = SIZES[name]
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1_000_000.0}
    return Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "depth": 32, "hidden_size": 1280, "num_heads": 16, "out_hidden_size": text["hidden_size"],
            "intermediate_size": VISION_WIDTHS.get(name, VISION_WIDTH),
        },
        tie_word_embeddings=text["tie_word_embeddings"],
    )  # fmt: skip


def build_model(recipe: Recipe) -> PreTrainedModel:
    """The model that a recipe trains, on the meta device, with its adapters."""
    name = str(recipe.model.model_name_or_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            qwen2_5_vl(name), dtype=getattr(torch, str(recipe.model.dtype))
        )
        adapters = adapter_config(recipe.model, model, vision=recipe.run.lora_vision)
        return model if adapters is None else get_peft_model(model, adapters).base_model.model


def estimate(recipe: Recipe) -> MemoryEstimate:
    """The memory of each device for prompts and responses of full length."""
    model = build_model(recipe)
    assert recipe.run.max_prompt_length is not None
    return memory_estimate(
        model,
        recipe.config,
        prompt_tokens=recipe.run.max_prompt_length,
        shares_prompts=why_not_shared(model, measured=True) is None,
        shards=recipe.run.num_processes or 1,
    )


def recipe_paths() -> list[Path]:
    """The recipes that this module knows the model of."""
    return sorted(recipe_folder().glob("qwen2_5_vl_*.yaml"))


def main() -> None:
    """Print a Markdown table, in GiB a device."""
    parts = [field.name for field in fields(MemoryEstimate)]
    print(f"| recipe | devices | {' | '.join(parts)} | total |\n|---|{'---:|' * (len(parts) + 2)}")
    for path in recipe_paths():
        recipe = load_recipe(path, ON_CPU)
        found = estimate(recipe)
        sizes = " | ".join(f"{size / GIB:.1f}" for size in (*astuple(found), found.total))
        print(f"| `{path.stem}` | {recipe.run.num_processes or 1} | {sizes} |")


if __name__ == "__main__":
    main()
