"""Prompts, processor and model of a run, with the same prompt builder and pixel limits in training and evaluation."""

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

ALL_LAYERS = "all-linear"  # PEFT's word for it
# Where a checkpoint may say, under `auto_map`, which classes are made of code that comes with it.
NAMING_CODE = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer_config.json",
)  # fmt: skip
CODES = "its images become discrete codes, through which no gradient reaches the vision tower"
CROSS_ATTENTION = "its decoder reads images by cross attention, not as tokens"
Q_FORMER = "its images reach the decoder through a Q-Former that has no placeholder in a chat prompt"
IMAGE_MASK = "its config names no image token: a mask beside the prompt says which positions are images"
# Families whose images are no tokens of the decoder, or that transformers cannot train as a policy, by `model_type`.
UNSUITABLE = {
    "apertus1p5": CODES,
    "blip": CROSS_ATTENTION,
    "blip-2": Q_FORMER,
    "chameleon": CODES,
    "diffusion_gemma": "it generates blocks of tokens by diffusion, not one token after another",
    "emu3": CODES,
    "evolla": "it reads proteins, not images",
    "florence2": "it is an encoder-decoder model, whose images are not in the decoder's context",
    "fuyu": "its processor drops the chat template that a checkpoint has",
    "git": "its decoder puts image features before the prompt, where no token stands for them",
    "got_ocr2": "its processor takes images as the pages of one document only, and it has no chat template",
    "hunyuan_vl": "its positions count images over all rows of a batch, so that a row depends on those before it",
    "idefics": CROSS_ATTENTION,
    "instructblip": Q_FORMER,
    "instructblipvideo": Q_FORMER,
    "kosmos-2": IMAGE_MASK,
    "kosmos-2.5": IMAGE_MASK,
    "mistral4": "it is a text-only model",
    "mistral_large4": "its attention scales queries by their absolute positions, which padding on the left moves",
    "mllama": CROSS_ATTENTION,
    "nemotron_h_omni": "it names no head (get_output_embeddings), from which TRL computes log-probabilities",
    "pi0": "it generates actions of a robot, not text",
    "shieldgemma2": "it classifies images by a policy that its processor writes, and has no other prompt",
    "unlimited_ocr": "its forward pass takes numbers of tiles as Python lists, which no batch of several rows holds",
}
# Parts of a model that transformers takes from another package, by their `model_type`.
PACKAGES = {"gemma3n_vision": "timm", "timm_backbone": "timm", "timm_wrapper": "timm"}
# What a processor calls its limits, and what we call them.
PIXEL_FIELDS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # an adapter without them has its base's processor
CHECKPOINT = "name a vision-language checkpoint (folder or hub name) with weights, processor and chat template"


def quiet_libraries() -> None:
    """Hide what no user can act on: bars of short steps, and names that transformers renames and TRL still reads."""
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)
    # PEFT, when it saves an adapter whose base is an adapter, or on a hub that it cannot reach. It asks whether the
    # vocabulary has grown, which a run never does.
    warnings.filterwarnings("ignore", "Could not find a config file in ", UserWarning)
    disable_progress_bars()
    disable_progress_bar()


class Checkpoint(Protocol):
    """Which checkpoint a recipe names; TRL's `ModelConfig` is one."""

    model_name_or_path: str | None
    model_revision: str | None
    dtype: str | None
    attn_implementation: str | None
    load_in_8bit: bool
    load_in_4bit: bool


@dataclass
class PlainCheckpoint:
    """A checkpoint as `load_model` and `load_processor` take it, without the other fields of a recipe."""

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
    """A checked data set as prompts, one image-bearing question a row.

    Args:
        source: What `vgpo.data.load_dataset` takes, or `toy:train` or `toy:test`, with the dial as in
            `toy:train:rows=4,columns=4` (`vgpo.toy.parse_task`).
        template: What `vgpo.data.to_prompts` takes.
        toy_folder: Where the embedded task's sets are written when `source` asks for them.
        reading: How its rows are read, and what becomes of faulty ones.
        limit: Keep the first so many rows.
        forbidden: What no problem may contain, see `forbidden_tokens`.
        max_images: Decode only the first so many images in the check; None for all.
        max_prompt_length: Leave out prompts of more tokens, with a line that counts them; `processor` and
            `chat_template_kwargs` say what the tokens are.

    Raises:
        DataError: A row or column that cannot be trained on; names it.
    """
    dataset = read_dataset(source, toy_folder=toy_folder, reading=reading, limit=limit)
    dataset = check_dataset(
        dataset, template=template, forbidden=forbidden, max_pictures=max_images, faulty_rows=reading.faulty_rows
    )
    if max_prompt_length is not None:
        assert processor is not None
        lengths = prompt_lengths(dataset, template, processor, chat_template_kwargs)
        dataset, left_out = drop_long(dataset, lengths, max_prompt_length)
        if left_out:
            logger.warning("%s: %s", source, left_out)
    return to_prompts(dataset, template)


def read_dataset(source: str, *, toy_folder: Path, reading: Reading = AS_IT_IS, limit: int | None = None) -> Dataset:
    """The unchecked rows of a set, the first `limit` of them; arguments as of `load_prompts`."""
    if is_toy(source):
        dataset = load_dataset(str(write_toy(source, toy_folder)))
    else:
        dataset = load_dataset(source, format=reading.format, columns=reading.columns, faulty_rows=reading.faulty_rows)
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def is_toy(source: str) -> bool:
    """Whether this is a set of the embedded task, which is written when it is asked for."""
    return source.split(":")[0] == TOY_MODEL and source.split(":")[1:2] in (["train"], ["test"])


def write_toy(source: str, folder: Path) -> Path:
    """Write `toy:train` or `toy:test`, with the difficulty dial as in `toy:train:rows=4`, and return the file.

    Raises:
        DataError: The dial has no such position.
    """
    _, split, *dial = source.split(":", 2)
    try:
        settings = parse_task(dial[0]) if dial else TaskSettings()
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    name: Split = "train" if split == "train" else "test"
    # The same images whatever the seed of a run, so that accuracies of runs can be compared.
    return write_split(folder / name, name, NUM_ROWS[name], settings=settings)


def load_processor(
    model: Checkpoint, *, trust_remote_code: bool, min_pixels: int | None, max_pixels: int | None
) -> ProcessorMixin:
    """The checkpoint's processor, padding on the left, within pixel limits (in pixels of the whole image).

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
    """The control tokens of a model's tokenizer, sorted: in a problem they would end the turn, or ask for an image.

    These are its special tokens and what stands for an image by the config; other added tokens, such as `<think>`,
    are words that a prompt may use.
    """
    config = load(AutoConfig, model, trust_remote_code=trust_remote_code)
    tokenizer = processor.tokenizer
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return sorted({*special, *tokenizer.convert_ids_to_tokens(banned_token_ids(config))})


def set_pixel_limits(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Resize every image to between so many pixels; None keeps the limit that is there.

    Raises:
        RecipeError: A limit is no number of pixels, or above the other one, or this kind of processor resizes in
            another way.
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
        image_processor.size[edge] = pixels  # numbers of pixels, under the names of edges
    lowest, highest = (image_processor.size[edge] for edge in PIXEL_FIELDS)
    if lowest > highest:
        raise RecipeError(
            f"min_pixels ({lowest}) is above max_pixels ({highest}); what you do not set is the checkpoint's own"
        )


def load_model(model: Checkpoint, *, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint's vision-language model, in the dtype and with the attention that `model` names.

    Of an adapter it is the base with the adapter merged into its weights.

    Raises:
        RecipeError: The checkpoint cannot be loaded, or its images are no tokens of its decoder.
    """
    refuse_unsuitable(model, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    if model.load_in_8bit or model.load_in_4bit:
        from trl import get_quantization_config  # not a package of every host

        options["quantization_config"] = get_quantization_config(model)
    loaded = load(AutoModelForImageTextToText, model, trust_remote_code=trust_remote_code, **options)
    loaded.name_or_path = absolute(loaded.name_or_path)  # an adapter on top of it is read in other folders too
    return loaded


def adapter_config(recipe: "ModelConfig", model: PreTrainedModel, *, vision: bool) -> PeftConfig | None:
    """The adapters that a recipe asks for: in the decoder, or with `vision` in vision tower and projector too.

    They record the revision of a model of the hub, which they are loaded onto again.

    Raises:
        RecipeError: No linear layer there has a name of `lora_target_modules`.
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
    """Full names of the layers that get adapters; arguments and errors as of `adapter_config`."""
    layers = [names] if isinstance(names, str) else names
    try:
        return lora_targets(model, vision=vision, layers=None if names == ALL_LAYERS else layers)
    except ValueError as error:
        raise RecipeError(f"lora_target_modules: {error} Name some of them, or leave it out for all.") from error


def load(auto_class: Any, model: Checkpoint, *, trust_remote_code: bool, **options: Any) -> Any:
    """`from_pretrained`, with a checkpoint that is missing, broken or of another kind as an error of the recipe.

    Of an adapter the config is its base's; the processor is its own where one is saved with it, else the base's; the
    model is the base with the adapter merged.
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
    """Where the checkpoint of a recipe is."""
    name = str(checkpoint_path()) if model.model_name_or_path == TOY_MODEL else str(model.model_name_or_path)
    return Source(name, model.model_revision)


def processor_of(chain: Sequence[Source], **options: Any) -> Any:
    """The processor of the first of a chain that has one, with the tokenizers and chat templates saved before it."""
    number = next((number for number, part in enumerate(chain[:-1]) if part.has_any(PROCESSORS)), len(chain) - 1)
    processor = from_source(AutoProcessor, chain[number], of=chain[0], **options)
    for part in reversed(chain[:number]):
        own_tokens(processor, part, functools.partial(from_source, AutoTokenizer, of=chain[0], **options))
    return processor


def from_source(auto_class: Any, source: Source, *, of: Source, **options: Any) -> Any:
    """What `auto_class` makes of one checkpoint, which is `of` itself or the base of it."""
    looked = f" (looked for in the folder {Path(source.name).absolute()} and on the hub)"
    what = repr(of.name) if source == of else f"the base {source.name!r} of the adapter {of.name!r}"
    with faults_of(what if source.is_folder else what + looked):
        if options["trust_remote_code"]:
            refuse_code_from_elsewhere(source.name, source.revision)
        return auto_class.from_pretrained(source.name, revision=source.revision or "main", **options)


@contextmanager
def faults_of(checkpoint: str) -> Iterator[None]:
    """Errors of a checkpoint as errors of the recipe, which name it."""
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
    """Whether all code that a checkpoint would run is in its own repository: no revision pins that of another.

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
                    "whose code is whatever it has when the run starts. Put the checkpoint and that code into one "
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
    """Whether the images of a model are tokens of its decoder and its packages are installed, by its config alone.

    Raises:
        RecipeError: They are not; no weights have been loaded.
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
    """The package that a part of a model comes from, if it is not installed."""
    parts = (getattr(config, name) for name in config.sub_configs)
    packages = {PACKAGES[part.model_type] for part in parts if getattr(part, "model_type", None) in PACKAGES}
    return next((package for package in sorted(packages) if find_spec(package) is None), None)


def why_unsuitable(config: PretrainedConfig) -> str | None:
    """Why a model cannot be trained, by its config, or None."""
    if config.model_type in UNSUITABLE:
        return UNSUITABLE[config.model_type]
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, whose images are not in the decoder's context"
    if getattr(config.get_text_config(), "cross_attention_layers", None):
        return CROSS_ATTENTION
    return None


def check_image_token(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Whether the processor writes the token that the model replaces by image features.

    Raises:
        RecipeError: It does not: files of two checkpoints were mixed. Or it fails on an image.
    """
    wanted = named_visual_token_ids(model.config)
    if not wanted:
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
    if written.isdisjoint(wanted):
        names = processor.tokenizer.convert_ids_to_tokens(wanted)
        in_tokenizer = [token for token in getattr(processor, "image_token_ids", []) if token is not None]
        raise RecipeError(
            f"model_name_or_path: {model.name_or_path!r} has the image token ids {wanted} in its config, which its "
            f"tokenizer calls {names}, but its processor writes none of them for an image; its own are "
            f"{in_tokenizer}. Take config and tokenizer from the same checkpoint"
        )
