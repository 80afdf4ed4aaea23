"""Prompts, processor and model of a run, with the same prompt builder and pixel limits in training and evaluation."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar
from trl import ModelConfig, get_quantization_config

from vgpo.commands.recipe import RecipeError
from vgpo.data import check_dataset, load_dataset, to_prompts
from vgpo.focus import banned_token_ids
from vgpo.toy import checkpoint_path, write_datasets

TOY_MODEL = "toy"
CHECKPOINT = "name a vision-language checkpoint (folder or hub name) with weights, processor and chat template"


def quiet_libraries() -> None:
    """Hide what no user can act on: bars of short steps, and names that transformers renames and TRL still reads."""
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)
    disable_progress_bars()
    disable_progress_bar()


def load_prompts(
    source: str, template: str, *, toy_folder: Path, limit: int | None = None, forbidden: Sequence[str] = ()
) -> Dataset:
    """A checked data set as prompts, one image-bearing question a row.

    Args:
        source: What `vgpo.data.load_dataset` takes, or `toy:train` or `toy:test`.
        template: What `vgpo.data.to_prompts` takes.
        toy_folder: Where the embedded task's sets are written when `source` asks for them.
        limit: Keep the first so many rows.
        forbidden: What no problem may contain, see `picture_tokens`.

    Raises:
        DataError: A row or column that cannot be trained on; names it.
    """
    # The same pictures whatever the seed of a run, so that accuracies of runs can be compared.
    if source == "toy:train":
        source = str(write_datasets(toy_folder / "train", num_test=1)[0])
    elif source == "toy:test":
        source = str(write_datasets(toy_folder / "test", num_train=1)[1])
    dataset = load_dataset(source)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    check_dataset(dataset, forbidden=forbidden)
    return to_prompts(dataset, template)


def load_processor(
    model: ModelConfig, *, trust_remote_code: bool, min_pixels: int | None, max_pixels: int | None
) -> ProcessorMixin:
    """The checkpoint's processor, padding on the left, within pixel limits (in pixels of the whole image).

    Raises:
        RecipeError: No such checkpoint, one without images or chat template, or a processor without pixel limits.
    """
    processor = load(AutoProcessor, model, revision=model.model_revision, trust_remote_code=trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise RecipeError(f"model_name_or_path: {model.model_name_or_path!r} has no image processor; {CHECKPOINT}")
    if not processor.chat_template:
        raise RecipeError(f"model_name_or_path: {model.model_name_or_path!r} has no chat template; {CHECKPOINT}")
    processor.tokenizer.padding_side = "left"
    set_pixel_limits(processor.image_processor, min_pixels, max_pixels)
    return processor


def picture_tokens(model: ModelConfig, processor: ProcessorMixin, *, trust_remote_code: bool) -> list[str]:
    """The texts that stand for a picture in this model's prompts; in a problem they would ask for one too many."""
    config = load(AutoConfig, model, revision=model.model_revision, trust_remote_code=trust_remote_code)
    return processor.tokenizer.convert_ids_to_tokens(banned_token_ids(config))


def set_pixel_limits(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Resize every image to between so many pixels; None keeps the limit that is there.

    Raises:
        RecipeError: This kind of processor resizes in another way.
    """
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    limits = {edge: pixels for edge, pixels in limits.items() if pixels is not None}
    if limits and "max_pixels" not in image_processor.valid_kwargs.__annotations__:
        name = type(image_processor).__name__
        raise RecipeError(f"{name} has no pixel limits; remove min_pixels and max_pixels from the recipe")
    for edge, pixels in limits.items():
        image_processor.size[edge] = pixels  # numbers of pixels, under the names of edges


def load_model(model: ModelConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint's vision-language model, in the dtype and with the attention that `model` names.

    Raises:
        RecipeError: The checkpoint cannot be loaded.
    """
    options: dict[str, Any] = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    quantization = get_quantization_config(model)
    if quantization is not None:
        options["quantization_config"] = quantization
    return load(
        AutoModelForImageTextToText,
        model,
        revision=model.model_revision,
        trust_remote_code=trust_remote_code,
        **options,
    )


def load(auto_class: Any, model: ModelConfig, **options: Any) -> Any:
    """`from_pretrained`, with a checkpoint that is missing, broken or of another kind as an error of the recipe."""
    name = str(checkpoint_path()) if model.model_name_or_path == TOY_MODEL else model.model_name_or_path
    try:
        return auto_class.from_pretrained(name, **options)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RecipeError(f"model_name_or_path: {name!r} cannot be loaded: {reason}; {CHECKPOINT}") from error


def check_image_token(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Whether model and processor mean the same token by an image.

    Raises:
        RecipeError: They do not: files of two checkpoints were mixed.
    """
    if not hasattr(model.config, "image_token_id") or not hasattr(processor, "image_token"):
        return
    in_model, token = model.config.image_token_id, processor.image_token
    in_tokenizer = processor.tokenizer.convert_tokens_to_ids(token)
    if in_model != in_tokenizer:
        raise RecipeError(
            f"model_name_or_path: {model.name_or_path!r} has image_token_id {in_model} in its config, but its "
            f"tokenizer gives {token!r} the id {in_tokenizer}; take config and tokenizer from the same checkpoint"
        )
