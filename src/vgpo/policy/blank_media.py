"""A blank image for processes whose rows have none.

A vision tower that is spread over processes (FSDP, ZeRO-3) is gathered layer by layer, and its gradients are reduced,
by all processes at once. A process that skips it because its rows are text only would leave the others waiting.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn

from vgpo.focus import decoder_of


def blank_prompt() -> list[dict[str, Any]]:
    """Messages with an image that every processor takes; Idefics3 would take a grey one for padding."""
    image = {"type": "image", "image": Image.new("RGB", (64, 64), "white")}
    return [{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]


@contextmanager
def blank_media(model: nn.Module, images: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the first forward pass of `model` runs its vision tower over `images`, without effect.

    Their features are added to the decoder's input times zero: what the pass returns is the same, and every parameter
    that images go through gets a gradient of zeros. The pass must be one over text only.

    Args:
        model: a VLM of transformers, wrapped or not.
        images: what the processor makes of an image.
    """

    def look(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del decoder
        handle.remove()
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + zero_of(model, images)}

    # Here all wrappers have gathered what is outside of the layers that they gather one by one.
    handle = decoder_of(model).register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def zero_of(model: nn.Module, images: Mapping[str, Tensor]) -> Tensor:
    """Zero, out of all features that the decoder takes of `images`."""
    features = list(tensors_of(image_features(model, images)))
    return torch.stack([feature.mean(dtype=torch.float32) for feature in features]).sum() * 0


def image_features(model: nn.Module, images: Mapping[str, Tensor], **options: Any) -> Any:
    """What a model's `get_image_features` returns for what its processor makes of an image.

    Raises:
        ValueError: the model has no such method.
    """
    vlm = extract_model_from_parallel(model)
    vlm = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    # The model without its head names all fields that it needs; the one with a head passes on what it does not name.
    owners = (getattr(vlm, "base_model", None), vlm)
    owner = next((owner for owner in owners if hasattr(owner, "get_image_features")), None)
    if owner is None:
        raise ValueError(f"{type(vlm).__name__} has no get_image_features(), so it cannot look at a blank image.")
    known = inspect.signature(owner.get_image_features).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()) and len(known) == 1
    fields = dict(images)
    if "pixel_values" in known and "pixel_values" not in fields:  # Video-LLaVA's processor says whose pixels they are
        fields["pixel_values"] = fields.pop("pixel_values_images")
    given = {name: value for name, value in fields.items() if takes_all or name in known}
    return owner.get_image_features(**given, **options)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The features in an output of `get_image_features`: its pooled ones, and those of further levels."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from tensors_of(part)
    elif output is not None:
        yield from tensors_of(getattr(output, "pooler_output", None))
        yield from tensors_of(getattr(output, "deepstack_features", None))  # Qwen3-VL, for its first layers
