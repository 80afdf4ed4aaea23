"""A recipe's dataset as verl's trainer and agent loop take it: read, checked and templated by vgpo."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from vgpo.policy.prompts import messages_with_images
from vgpo.recipe.loading import forbidden_tokens, load_processor, load_prompts
from vgpo.verl.config import VerlRecipe, recipe_of
from vgpo.verl.keys import prompt_length

TRAIN, HELD_OUT = "train_data", "eval_data"
"""The value of verl's `files`: the recipe field that names the dataset."""
COLUMNS = "vgpo_columns"
"""Field of a sample that holds the columns of its row, as a reward function takes them."""


class VGPODataset(Dataset):
    """The rows of `train_data` or `eval_data` of a recipe.

    Args:
        data_files: `TRAIN` or `HELD_OUT`.
        config: verl's `data` section, with the recipe in it.
        The others are verl's, and not needed: prompts are those of `vgpo.data`.
    """

    def __init__(self, data_files: str, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1):
        del tokenizer, processor, max_samples
        self.field = data_files
        # The launcher has decoded every image.
        self.rows = load_rows(recipe_of(config), data_files, max_images=0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        columns = {name: value for name, value in row.items() if name not in ("prompt", "images")}
        return {
            "raw_prompt": messages_with_images(row["prompt"], row["images"]),
            "index": index,
            "num_images": len(row["images"]),
            "data_source": self.field,
            COLUMNS: {**columns, "row_index": index},
            "dummy_tensor": torch.zeros(1, dtype=torch.uint8),  # verl's batches hold a tensor
        }

    @classmethod
    async def process_multi_modal_info(
        cls, messages: list[dict[str, Any]], image_patch_size: int, config: Any
    ) -> tuple[list[Image.Image] | None, None, None]:
        """Images, videos and audios of a prompt. Images are as they are: the processor resizes them."""
        return images_of(messages) or None, None, None


def images_of(messages: list[dict[str, Any]]) -> list[Image.Image]:
    """The images of messages, in order."""
    return [
        block["image"] for message in messages for block in message["content"] or () if block.get("type") == "image"
    ]


def processor_of_recipe(recipe: VerlRecipe) -> ProcessorMixin:
    """The processor of a recipe's checkpoint, within its pixel limits."""
    return load_processor(
        recipe.checkpoint,
        trust_remote_code=recipe.arguments.trust_remote_code,
        min_pixels=recipe.run.min_pixels,
        max_pixels=recipe.run.max_pixels,
    )


def load_rows(recipe: VerlRecipe, field: str, *, max_images: int | None = None) -> Any:
    """The rows of a set of a recipe, with prompts as in training with TRL; an empty list if it names none.

    Args:
        recipe: a checked recipe.
        field: `TRAIN` or `HELD_OUT`.
        max_images: decode at most the first `max_images` images in the check; None for all.

    Raises:
        DataError: a row that cannot be trained on; names it.
        RecipeError: the checkpoint's processor cannot be loaded.
    """
    run, arguments = recipe.run, recipe.arguments
    source = vars(run)[field]
    if source is None:
        return []
    reading = run.reading(field)
    trust = arguments.trust_remote_code
    processor = processor_of_recipe(recipe)
    return load_prompts(
        source,
        run.template,
        toy_folder=Path(run.run_dir) / "data",
        reading=reading,
        limit=run.eval_limit if field == HELD_OUT else None,
        forbidden=forbidden_tokens(recipe.checkpoint, processor, trust_remote_code=trust),
        max_images=None if reading.faulty_rows == "drop" else max_images,  # which rows are left depends on all images
        max_prompt_length=prompt_length(recipe) if field == TRAIN else None,  # an agent loop stops at a longer one
        processor=processor,
        chat_template_kwargs=recipe.chat_template_kwargs,
    )
