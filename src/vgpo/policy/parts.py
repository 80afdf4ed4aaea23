"""The parts of a vision-language model: what is trained, and which layers get LoRA adapters."""

from collections.abc import Sequence
from typing import NamedTuple

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from rich.table import Table
from torch import nn

from vgpo.focus import decoder_of
from vgpo.text import did_you_mean

FREEZABLE = ("vision", "projector", "language_model", "audio", "generation")
TRAINED = ("vision", "projector", "language_model")  # parts that a prompt of images and text passes through
PARTS = (*FREEZABLE, "head")
# Module names outside the path of images and text: branches of omni models, and generators of images or speech. Text
# rollouts never run them, so they get no gradient, frozen or not.
OTHER_PARTS = {
    "audio": ("audio", "speech"),
    "generation": ("generation", "vqmodel", "vqvae", "talker", "token2wav", "code2wav", "vision_decoder"),
    "vision": ("video_tower",),
}
# Modules in the vision tower of the Qwen-VL families that project its states to the decoder.
MERGERS = ("merger", "deepstack_merger_list")


class Count(NamedTuple):
    """Numbers of parameters."""

    trainable: int
    all: int


def check_freeze(parts: Sequence[str]) -> None:
    """Check that `parts` can be frozen and something is left to train.

    Raises:
        ValueError: They cannot be frozen; names the part.
    """
    if isinstance(parts, str):
        raise ValueError(f"freeze={parts!r} is a str, expected a list: freeze=[{parts!r}].")
    for part in parts:
        if part not in FREEZABLE:
            hint = did_you_mean(str(part), FREEZABLE)
            raise ValueError(f"freeze: unknown part {part!r}{hint}, expected some of {list(FREEZABLE)}.")
    if set(TRAINED) <= set(parts):
        raise ValueError(f"freeze={list(parts)} leaves nothing to train. Remove one of them.")


def part_of_parameters(model: nn.Module) -> dict[str, str]:
    """The part, one of `PARTS`, of each parameter, by parameter name.

    Vision tower and decoder are those that the model declares (`get_encoder("image")`, `get_decoder()`). The projector
    is everything between them, inside or outside the tower. A head that is tied to the embeddings is not a separate
    parameter.

    Args:
        model: a VLM of transformers, with adapters or without, wrapped or not.
    """
    vlm = extract_model_from_parallel(model)
    decoder, tower = decoder_of(model), vlm.get_encoder(modality="image")
    if decoder in tower.modules():  # the model itself, if it declares no tower
        tower = nn.Module()
    mergers = nn.ModuleList(child for name, child in tower.named_children() if name in MERGERS)
    # Later entries are more specific, or the first owner of a tied weight.
    modules = {"head": vlm.get_output_embeddings(), "vision": tower, "projector": mergers, "language_model": decoder}
    parts = {parameter: part for part, module in modules.items() for parameter in module.parameters()}
    return {name: parts.get(parameter) or part_by_module(name) for name, parameter in model.named_parameters()}


def part_by_module(parameter: str) -> str:
    """The part of a parameter outside tower, decoder and head, from the names of its parent modules."""
    modules = parameter.split(".")
    for part, prefixes in OTHER_PARTS.items():
        if any(module.startswith(prefixes) or f"_{prefix}" in module for module in modules for prefix in prefixes):
            return part
    return "projector"


def freeze_parts(model: nn.Module, frozen: Sequence[str]) -> None:
    """Freeze these parts of `model`; the head belongs to the language model.

    Args:
        model: a VLM of transformers, without adapters.
        frozen: some of `FREEZABLE`.

    Raises:
        ValueError: for an unknown part or one that this model does not have, if nothing is left to train, and for a
        model with adapters, which trains only these.
    """
    check_freeze(frozen)
    if isinstance(extract_model_from_parallel(model, keep_torch_compile=False), PeftModel):
        raise ValueError(
            f"freeze={list(frozen)} has no effect on a model with adapters: only these are trained. Remove freeze, "
            "and choose the layers that get adapters."
        )
    parts = part_of_parameters(model)
    for part in frozen:
        if part not in parts.values():
            raise ValueError(f"freeze: {type(model).__name__} has no parameters in the part {part!r}. Remove it.")
    heads = ["head"] if "language_model" in frozen else []
    for name, parameter in model.named_parameters():
        if parts[name] in (*frozen, *heads):
            parameter.requires_grad_(False)


def lora_targets(model: nn.Module, *, vision: bool = False, layers: Sequence[str] | None = None) -> list[str]:
    """Full names of the linear layers that get LoRA adapters: only those of the decoder.

    Args:
        model: a VLM of transformers, without adapters.
        vision: include those of the vision tower and the projector.
        layers: only layers with these names, such as "q_proj"; all by default.

    Raises:
        ValueError: if no layer has one of the names.
    """
    parts = part_of_parameters(model)
    trained = TRAINED if vision else ("language_model",)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if parts.get(f"{name}.weight") in trained]
    if layers is None:
        return targets
    for layer in layers:
        if not any(f".{target}".endswith(f".{layer}") for target in targets):
            known = sorted({target.rpartition(".")[2] for target in targets})
            raise ValueError(f"No linear layer of {list(trained)} is called {layer!r}; there are {known}.")
    return [target for target in targets if any(f".{target}".endswith(f".{layer}") for layer in layers)]


def count_parameters(model: nn.Module) -> dict[str, Count]:
    """Numbers of all and of trained parameters in each part."""
    parts = part_of_parameters(model)
    sizes = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        size = sizes[parts[name]]
        size[0] += parameter.numel() if parameter.requires_grad else 0
        size[1] += parameter.numel()
    return {part: Count(*size) for part, size in sizes.items()}


def parameter_table(model: nn.Module) -> Table:
    """A short table for the start of a run: what is trained."""
    table = Table("parameters", "trainable", "all", "share", box=None, title_justify="left", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    counts = count_parameters(model)
    total = Count(*map(sum, zip(*counts.values(), strict=True)))
    for part, count in {**counts, "total": total}.items():
        if not count.all and part in ("audio", "generation"):
            continue  # most models have none
        share = f"{count.trainable / count.all:.2%}" if count.all else ("tied" if part == "head" else "none")
        table.add_row(part.replace("_", " "), f"{count.trainable:,}", f"{count.all:,}", share)
    return table
