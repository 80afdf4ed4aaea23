"""A blank image for processes whose rows have no image.

Gathering the layers of a sharded vision tower (FSDP, ZeRO-3) and reducing its gradients are collective operations. A
process that skips the tower because its rows are text only would block the others.
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
    """Messages with an image that every processor accepts; Idefics3 would treat a grey one as padding."""
    image = {"type": "image", "image": Image.new("RGB", (64, 64), "white")}
    return [{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]


@contextmanager
def blank_media(model: nn.Module, images: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the first forward pass of `model` also runs its vision tower over `images`, without effect.

    Their features are multiplied by zero and added to the decoder's input: the output is unchanged, and every
    parameter of the image path gets a zero gradient. The pass must be text only.

    Args:
        model: a VLM of transformers, wrapped or not.
        images: the processor's output for an image.
    """

    def look(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del decoder
        handle.remove()
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + zero_of(model, images)}

    # At this point all wrappers have gathered the parameters outside the layers that they gather one by one.
    handle = decoder_of(model).register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def zero_of(model: nn.Module, images: Mapping[str, Tensor]) -> Tensor:
    """Zero, computed from all features of `images` that the decoder takes."""
    features = list(tensors_of(image_features(model, images)))
    return torch.stack([feature.mean(dtype=torch.float32) for feature in features]).sum() * 0


def image_features(model: nn.Module, images: Mapping[str, Tensor], **options: Any) -> Any:
    """The output of a model's `get_image_features` for a preprocessed image.

    Raises:
        ValueError: the model has no such method.
    """
    vlm = extract_model_from_parallel(model)
    vlm = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    # The model without its head names all required fields; the model with a head forwards unnamed ones.
    owners = (getattr(vlm, "base_model", None), vlm)
    owner = next((owner for owner in owners if hasattr(owner, "get_image_features")), None)
    if owner is None:
        raise ValueError(f"{type(vlm).__name__} has no get_image_features(), so it cannot process a blank image.")
    known = inspect.signature(owner.get_image_features).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()) and len(known) == 1
    fields = dict(images)
    if "pixel_values" in known and "pixel_values" not in fields:  # Video-LLaVA's processor names the medium
        fields["pixel_values"] = fields.pop("pixel_values_images")
    given = {name: value for name, value in fields.items() if takes_all or name in known}
    return owner.get_image_features(**given, **options)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The features in an output of `get_image_features`: the pooled ones, and those of further levels."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from tensors_of(part)
    elif output is not None:
        yield from tensors_of(getattr(output, "pooler_output", None))
        yield from tensors_of(getattr(output, "deepstack_features", None))  # Qwen3-VL, for its first layers
