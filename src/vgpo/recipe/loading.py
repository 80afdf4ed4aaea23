"""Load prompts, processor and model of a run, with the same prompts and pixel limits in training and evaluation."""

import dataclasses
import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from datasets import Dataset, disable_progress_bars
from peft import PeftConfig
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from vgpo.data import AS_IT_IS, DataError, Reading, check_dataset, drop_long, load_dataset, prompt_lengths, to_prompts
from vgpo.focus import banned_token_ids, named_visual_token_ids
from vgpo.places import TOY_MODEL, checkpoint_fault
from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.parts import lora_targets
from vgpo.policy.probes import FAULTS
from vgpo.policy.processors import suit_trainer
from vgpo.recipe.adapters import Source, absolute, merged, own_tokens, with_bases
from vgpo.recipe.errors import RecipeError
from vgpo.toy import NUM_ROWS, TaskSettings, checkpoint_path, parse_task, write_split
from vgpo.toy.scans import Split

if TYPE_CHECKING:
    from trl import ModelConfig

logger = logging.getLogger(__name__)

ALL_LAYERS = "all-linear"  # PEFT's value
# Files in which a checkpoint may name classes of its own code, under `auto_map`.
NAMING_CODE = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer_config.json",
)  # fmt: skip
CODES = "its images become discrete codes, through which no gradient reaches the vision tower"
CROSS_ATTENTION = "its decoder reads images by cross attention, not as tokens"
Q_FORMER = "its images reach the decoder through a Q-Former that has no placeholder in a chat prompt"
IMAGE_MASK = "its config names no image token: a separate mask says which positions are images"
# Families whose images are not tokens of the decoder, or that transformers cannot train as a policy, by `model_type`.
UNSUITABLE = {
    "apertus1p5": CODES,
    "blip": CROSS_ATTENTION,
    "blip-2": Q_FORMER,
    "chameleon": CODES,
    "diffusion_gemma": "it generates blocks of tokens by diffusion, not one token after another",
    "emu3": CODES,
    "evolla": "it processes proteins, not images",
    "florence2": "it is an encoder-decoder model, whose images are not in the decoder's context",
    "fuyu": "its processor drops the chat template of a checkpoint",
    "git": "its decoder puts image features before the prompt, where no token represents them",
    "got_ocr2": "its processor takes images as the pages of one document only, and it has no chat template",
    "hunyuan_vl": "its positions count images over all rows of a batch, so that rows depend on each other",
    "idefics": CROSS_ATTENTION,
    "instructblip": Q_FORMER,
    "instructblipvideo": Q_FORMER,
    "kosmos-2": IMAGE_MASK,
    "kosmos-2.5": IMAGE_MASK,
    "mistral4": "it is a text-only model",
    "mistral_large4": "its attention scales queries by their absolute positions, which padding on the left moves",
    "mllama": CROSS_ATTENTION,
    "nemotron_h_omni": "it names no head (get_output_embeddings), from which TRL computes log-probabilities",
    "pi0": "it generates robot actions, not text",
    "shieldgemma2": "it classifies images with a fixed prompt from its processor",
    "unlimited_ocr": "its forward pass takes numbers of tiles as Python lists, which batches do not support",
}
# Model parts that transformers takes from another package, by their `model_type`.
PACKAGES = {"gemma3n_vision": "timm", "timm_backbone": "timm", "timm_wrapper": "timm"}
# A processor's names of its limits -> the recipe's names.
PIXEL_FIELDS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # an adapter without them uses its base's processor
CHECKPOINT = "name a vision-language checkpoint (folder or hub name) with weights, processor and chat template"


def quiet_libraries() -> None:
    """Hide messages that users cannot act on: bars of short steps, and deprecations in transformers that concern
    TRL."""
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)
    # From PEFT, when it saves an adapter whose base is an adapter or an unreachable hub name, to check for a larger
    # vocabulary, which a run never has.
    warnings.filterwarnings("ignore", "Could not find a config file in ", UserWarning)
    disable_progress_bars()
    disable_progress_bar()


class Checkpoint(Protocol):
    """The checkpoint fields of a recipe; TRL's `ModelConfig` matches this protocol."""

    model_name_or_path: str | None
    model_revision: str | None
    dtype: str | None
    attn_implementation: str | None
    load_in_8bit: bool
    load_in_4bit: bool


@dataclass
class PlainCheckpoint:
    """The checkpoint fields for `load_model` and `load_processor`, without the rest of a recipe."""

    model_name_or_path: str | None
    dtype: str | None = "auto"
    model_revision: str | None = "main"
    attn_implementation: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False


def load_prompts(
    source: str,
    template: str,
    *,
    toy_folder: Path,
    reading: Reading = AS_IT_IS,
    limit: int | None = None,
    forbidden: Sequence[str] = (),
    max_images: int | None = None,
    max_prompt_length: int | None = None,
    processor: ProcessorMixin | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """A checked dataset as prompts, one question with images per row.

    Args:
        source: A source of `vgpo.data.load_dataset`, or `toy:train` or `toy:test`, with difficulty settings as in
        `toy:train:rows=4,columns=4` (`vgpo.toy.parse_task`).
        template: Template for `vgpo.data.to_prompts`.
        toy_folder: Folder for the toy task's datasets, if `source` names one.
        reading: How its rows are read, and how faulty ones are handled.
        limit: Keep at most the first `limit` rows.
        forbidden: Texts that no problem may contain, see `forbidden_tokens`.
        max_images: Decode at most the first `max_images` images in the check; None for all.
        max_prompt_length: Drop longer prompts, with a message that counts them; tokens are those of `processor` and
        `chat_template_kwargs`.

    Raises:
        DataError: A row or column that cannot be trained on; names it.
    """
    dataset = read_dataset(source, toy_folder=toy_folder, reading=reading, limit=limit)
    dataset = check_dataset(
        dataset, template=template, forbidden=forbidden, max_images=max_images, faulty_rows=reading.faulty_rows
    )
    if max_prompt_length is not None:
        assert processor is not None
        lengths = prompt_lengths(dataset, template, processor, chat_template_kwargs)
        dataset, left_out = drop_long(dataset, lengths, max_prompt_length)
        if left_out:
            logger.warning("%s: %s", source, left_out)
    return to_prompts(dataset, template)


def read_dataset(source: str, *, toy_folder: Path, reading: Reading = AS_IT_IS, limit: int | None = None) -> Dataset:
    """The first `limit` rows of a dataset, unchecked; arguments as in `load_prompts`."""
    if is_toy(source):
        dataset = load_dataset(str(write_toy(source, toy_folder)))
    else:
        dataset = load_dataset(source, format=reading.format, columns=reading.columns, faulty_rows=reading.faulty_rows)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def is_toy(source: str) -> bool:
    """Whether this is a dataset of the toy task, which is generated on demand."""
    return source.split(":")[0] == TOY_MODEL and source.split(":")[1:2] in (["train"], ["test"])


def write_toy(source: str, folder: Path) -> Path:
    """Write `toy:train` or `toy:test`, with difficulty settings as in `toy:train:rows=4`, and return the file.

    Raises:
        DataError: Invalid difficulty settings.
    """
    _, split, *dial = source.split(":", 2)
    try:
        settings = parse_task(dial[0]) if dial else TaskSettings()
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    name: Split = "train" if split == "train" else "test"
    # Independent of the seed of a run, so that accuracies are comparable.
    return write_split(folder / name, name, NUM_ROWS[name], settings=settings)


def load_processor(
    model: Checkpoint, *, trust_remote_code: bool, min_pixels: int | None, max_pixels: int | None
) -> ProcessorMixin:
    """The checkpoint's processor, padding on the left, within pixel limits (in pixels of the complete image).

    Raises:
        RecipeError: No such checkpoint, one without images or chat template, or a processor without pixel limits.
    """
    processor = load(AutoProcessor, model, trust_remote_code=trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise RecipeError(f"model_name_or_path: {model.model_name_or_path!r} has no image processor; {CHECKPOINT}")
    if not processor.chat_template:
        raise RecipeError(f"model_name_or_path: {model.model_name_or_path!r} has no chat template; {CHECKPOINT}")
    processor.tokenizer.padding_side = "left"
    set_pixel_limits(processor.image_processor, min_pixels, max_pixels)
    config = load(AutoConfig, model, trust_remote_code=trust_remote_code)
    suit_trainer(processor, config)
    return processor


def forbidden_tokens(model: Checkpoint, processor: ProcessorMixin, *, trust_remote_code: bool) -> list[str]:
    """The sorted control tokens of a model's tokenizer: in a problem they would end the turn, or require an image.

    These are its special tokens and the image tokens of the config; prompts may use other added tokens, such as
    `<think>`.
    """
    config = load(AutoConfig, model, trust_remote_code=trust_remote_code)
    tokenizer = processor.tokenizer
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return sorted({*special, *tokenizer.convert_ids_to_tokens(banned_token_ids(config))})


def set_pixel_limits(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the pixel limits between which images are resized; None keeps an existing limit.

    Raises:
        RecipeError: A limit is invalid or above the other one, or this kind of processor has no pixel limits.
    """
    given = zip(PIXEL_FIELDS, (min_pixels, max_pixels), strict=True)
    limits = {edge: pixels for edge, pixels in given if pixels is not None}
    if not limits:
        return
    if "max_pixels" not in image_processor.valid_kwargs.__annotations__:
        name = type(image_processor).__name__
        raise RecipeError(f"{name} has no pixel limits; remove min_pixels and max_pixels from the recipe")
    for edge, pixels in limits.items():
        if pixels < 1:
            raise RecipeError(f"{PIXEL_FIELDS[edge]} is {pixels}, expected at least 1 pixel; or leave it out")
        image_processor.size[edge] = pixels  # numbers of pixels, although the names refer to edges
    lowest, highest = (image_processor.size[edge] for edge in PIXEL_FIELDS)
    if lowest > highest:
        raise RecipeError(
            f"min_pixels ({lowest}) is above max_pixels ({highest}); limits that you do not set come from the "
            "checkpoint"
        )


def load_model(model: Checkpoint, *, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint's vision-language model, with the dtype and attention of `model`.

    For an adapter, it is the base with the adapter merged into its weights.

    Raises:
        RecipeError: The checkpoint cannot be loaded, or its images are not tokens of its decoder.
    """
    refuse_unsuitable(model, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    if model.load_in_8bit or model.load_in_4bit:
        from trl import get_quantization_config  # not a package of every host

        options["quantization_config"] = get_quantization_config(model)
    loaded = load(AutoModelForImageTextToText, model, trust_remote_code=trust_remote_code, **options)
    loaded.name_or_path = absolute(
        loaded.name_or_path
    )  # absolute: an adapter on top of it may be loaded from other folders
    return loaded


def adapter_config(recipe: "ModelConfig", model: PreTrainedModel, *, vision: bool) -> PeftConfig | None:
    """The adapter config of a recipe: for the decoder, and with `vision` for vision tower and projector too.

    It records the revision of a hub model, onto which the adapter is loaded again.

    Raises:
        RecipeError: No linear layer there has a name in `lora_target_modules`.
    """
    if not recipe.use_peft:
        return None
    names = recipe.lora_target_modules
    if names is not None or not recipe.lora_target_parameters:
        recipe = dataclasses.replace(recipe, lora_target_modules=target_layers(names, model, vision=vision))
    from trl import get_peft_config  # not a package of every host

    config = get_peft_config(recipe)
    if not Path(model.name_or_path).is_dir() and recipe.model_revision != "main":
        config.revision = recipe.model_revision
    return config


def target_layers(names: Any, model: PreTrainedModel, *, vision: bool) -> list[str]:
    """Full names of the layers that get adapters; arguments and errors as in `adapter_config`."""
    layers = [names] if isinstance(names, str) else names
    try:
        return lora_targets(model, vision=vision, layers=None if names == ALL_LAYERS else layers)
    except ValueError as error:
        raise RecipeError(f"lora_target_modules: {error} Name some of them, or leave it out for all.") from error


def load(auto_class: Any, model: Checkpoint, *, trust_remote_code: bool, **options: Any) -> Any:
    """`from_pretrained` that raises RecipeError for a missing, broken or unsupported checkpoint.

    For an adapter, the config is its base's; the processor is the one saved with it, else the base's; the model is the
    base with the adapter merged.
    """
    source = source_of(model)
    if fault := checkpoint_fault(source.name):
        raise RecipeError(f"model_name_or_path: {fault}")
    options["trust_remote_code"] = trust_remote_code
    with faults_of(repr(source.name)):
        chain = with_bases(source, trust_remote_code=trust_remote_code)
    if auto_class is AutoProcessor:
        return processor_of(chain, **options)
    loaded = from_source(auto_class, chain[-1], of=source, **options)
    adapters = chain[-2::-1] if auto_class is AutoModelForImageTextToText else []
    return functools.reduce(merged, adapters, loaded)


def source_of(model: Checkpoint) -> Source:
    """The source of a recipe's checkpoint."""
    name = str(checkpoint_path()) if model.model_name_or_path == TOY_MODEL else str(model.model_name_or_path)
    return Source(name, model.model_revision)


def processor_of(chain: Sequence[Source], **options: Any) -> Any:
    """The first processor in a chain, with the tokenizers and chat templates of the adapters before it."""
    number = next((number for number, part in enumerate(chain[:-1]) if part.has_any(PROCESSORS)), len(chain) - 1)
    processor = from_source(AutoProcessor, chain[number], of=chain[0], **options)
    for part in reversed(chain[:number]):
        own_tokens(processor, part, functools.partial(from_source, AutoTokenizer, of=chain[0], **options))
    return processor


def from_source(auto_class: Any, source: Source, *, of: Source, **options: Any) -> Any:
    """Load one checkpoint, `of` itself or its base, with `auto_class`."""
    looked = f" (looked for in the folder {Path(source.name).absolute()} and on the hub)"
    what = repr(of.name) if source == of else f"the base {source.name!r} of the adapter {of.name!r}"
    with faults_of(what if source.is_folder else what + looked):
        if options["trust_remote_code"]:
            refuse_code_from_elsewhere(source.name, source.revision)
        return auto_class.from_pretrained(source.name, revision=source.revision or "main", **options)


@contextmanager
def faults_of(checkpoint: str) -> Iterator[None]:
    """Convert errors of a checkpoint to RecipeErrors that name it."""
    try:
        yield
    except RecipeError:
        raise
    except ImportError as error:  # its message has the pip command
        raise RecipeError(f"model_name_or_path: {checkpoint} needs a package: {str(error).strip()}") from error
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RecipeError(f"model_name_or_path: {checkpoint} cannot be loaded: {reason}; {CHECKPOINT}") from error


def refuse_code_from_elsewhere(name: str, revision: str | None) -> None:
    """Check that all code of a checkpoint is in its own repository: a revision does not pin another repository.

    Raises:
        RecipeError: It names a class as `repository--module.Class`.
    """
    for file in NAMING_CODE:
        path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        for reference in code_references(json.loads(Path(path).read_text(encoding="utf-8"))):
            repository, mark, code = reference.rpartition("--")
            if mark and repository != name:
                raise RecipeError(
                    f"model_name_or_path: {file} of {name!r} takes {code} from another repository, {repository!r}, "
                    "whose code can change before the run starts. Put the checkpoint and that code into one "
                    f"folder, remove '{repository}--' from auto_map there, and name the folder"
                )


def code_references(value: Any, named: bool = False) -> Iterator[str]:
    """All texts under a key `auto_map`, at any depth."""
    if isinstance(value, str) and named:
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from code_references(inner, named or key == "auto_map")
    elif isinstance(value, list):
        for inner in value:
            yield from code_references(inner, named)


def refuse_unsuitable(model: Checkpoint, *, trust_remote_code: bool) -> None:
    """Check from its config that a model's images are tokens of its decoder and its packages are installed.

    Raises:
        RecipeError: They are not; raised before weights are loaded.
    """
    config = load(AutoConfig, model, trust_remote_code=trust_remote_code)
    if reason := why_unsuitable(config):
        raise RecipeError(
            f"model_name_or_path: {model.model_name_or_path!r} (model_type {config.model_type!r}) cannot be trained: "
            f"{reason}. VGPO measures how response tokens relate to image tokens; docs/families.md lists models that "
            "have them"
        )
    if package := missing_package(config):
        raise RecipeError(
            f"model_name_or_path: {model.model_name_or_path!r} (model_type {config.model_type!r}) has a part of the "
            f"package {package}, which is not installed: pip install {package}"
        )


def missing_package(config: PretrainedConfig) -> str | None:
    """The missing package of a model part, or None."""
    parts = (getattr(config, name) for name in config.sub_configs)
    packages = {PACKAGES[part.model_type] for part in parts if getattr(part, "model_type", None) in PACKAGES}
    return next((package for package in sorted(packages) if find_spec(package) is None), None)


def why_unsuitable(config: PretrainedConfig) -> str | None:
    """Why a model cannot be trained, from its config, or None."""
    if config.model_type in UNSUITABLE:
        return UNSUITABLE[config.model_type]
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, whose images are not in the decoder's context"
    if getattr(config.get_text_config(), "cross_attention_layers", None):
        return CROSS_ATTENTION
    return None


def check_image_token(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Check that the processor writes the token that the model replaces by image features.

    Raises:
        RecipeError: It does not, because files of two checkpoints were mixed; or it fails on an image.
    """
    image_tokens = named_visual_token_ids(model.config)
    if not image_tokens:
        return
    try:
        fields = processor.apply_chat_template(
            blank_prompt(), add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except FAULTS as error:
        raise RecipeError(
            f"model_name_or_path: {type(processor).__name__} of {model.name_or_path!r} fails on a prompt with one "
            f"image ({type(error).__name__}: {error}). Try another version of transformers, or another model"
        ) from error
    written = set(np.asarray(fields["input_ids"]).flatten().tolist())
    if written.isdisjoint(image_tokens):
        names = processor.tokenizer.convert_ids_to_tokens(image_tokens)
        in_tokenizer = [token for token in getattr(processor, "image_token_ids", []) if token is not None]
        raise RecipeError(
            f"model_name_or_path: {model.name_or_path!r} has the image token ids {image_tokens} in its config, which "
            f"its tokenizer calls {names}, but its processor writes none of them for an image; its own are "
            f"{in_tokenizer}. Take config and tokenizer from the same checkpoint"
        )
