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
    vlm = extract_model_from_parallel(model)
    known = inspect.signature(vlm.get_image_features).parameters
    output = vlm.get_image_features(**{name: value for name, value in images.items() if name in known})
    # Qwen3-VL has further features for its first layers.
    features = [*output.pooler_output, *(part for level in output.get("deepstack_features") or () for part in level)]
    return torch.stack([feature.mean(dtype=torch.float32) for feature in features]).sum() * 0
