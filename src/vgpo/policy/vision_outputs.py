"""Outputs of a frozen vision tower, computed once for all passes over a prompt.

transformers takes such outputs instead of pixels (`mm_encoder_outputs`). They remain valid as long as neither the
vision tower nor the projector is trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from vgpo.policy.blank_media import image_features
from vgpo.policy.parts import part_of_parameters
from vgpo.policy.prompts import EncodedPrompt, joined_media
from vgpo.shared_prompt import generate_replaced, generator_of, is_sharded

ENCODER_OUTPUTS = "mm_encoder_outputs"
PIXELS = "pixel_"  # name prefixes of fields that only the vision tower reads
KEPT = ("pooler_output", "deepstack_features")  # fields of an output that a decoder takes


def why_run_tower(model: nn.Module) -> str | None:
    """Why the vision tower has to run in every pass, or None if its outputs can be kept.

    Args:
        model: the trained model, wrapped or not.
    """
    vlm = extract_model_from_parallel(model)
    vlm = vlm.get_base_model() if hasattr(vlm, "get_base_model") else vlm
    if not getattr(vlm, "_supports_mm_encoder_outputs", lambda: False)():
        return f"the forward of {type(vlm).__name__} takes no {ENCODER_OUTPUTS}"
    parts = part_of_parameters(model)
    trained = {parts[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained.isdisjoint({"vision", "projector"}):
        return "vision tower or projector are trained"
    if is_sharded(model):
        return "the parameters are sharded over processes, which gather them in complete passes"
    tower = vlm.get_encoder(modality="image")
    if any(isinstance(module, nn.Dropout) and module.p for module in tower.modules()):
        return "the vision tower has dropout"
    return None


class VisionOutputs:
    """The outputs of a frozen vision tower for the prompts of a generation.

    Args:
        model: the trained model, wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # By the id of the prompt, which is kept alive.
        self._kept: dict[int, tuple[EncodedPrompt, Any]] = {}

    def forget(self) -> None:
        """Free all outputs."""
        self._kept.clear()

    def media(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """As `joined_media`, with tower outputs instead of pixels; a new dictionary for each call."""
        with_images = [prompt for prompt in prompts if prompt.media]
        if not with_images:
            return {}
        fields = joined_media(prompts, without=PIXELS)
        return {**fields, ENCODER_OUTPUTS: {"image": joined_outputs([self._output_of(one) for one in with_images])}}

    def _output_of(self, prompt: EncodedPrompt) -> Any:
        if id(prompt) not in self._kept:
            with torch.no_grad():
                output = image_features(self.model, prompt.media, return_dict=True)
            kept = {name: getattr(output, name) for name in KEPT if getattr(output, name, None) is not None}
            self._kept[id(prompt)] = prompt, type(output)(**kept)
        return self._kept[id(prompt)][1]


def joined_outputs(outputs: Sequence[Any]) -> Any:
    """One output of the tower for the images of several prompts, in order."""

    def join(values: Sequence[Any]) -> Any:
        return torch.cat(list(values)) if isinstance(values[0], Tensor) else [image for one in values for image in one]

    fields = {"pooler_output": join([output.pooler_output for output in outputs])}
    levels = [
        output.deepstack_features for output in outputs if getattr(output, "deepstack_features", None) is not None
    ]
    if levels:
        fields["deepstack_features"] = [join(level) for level in zip(*levels, strict=True)]
    return type(outputs[0])(**fields)


@contextmanager
def generating_from(model: nn.Module, media: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Inside the block, `model.generate` gets the tower outputs in `media`; yields the other fields.

    TRL only passes tensors on to `generate`.
    """
    fields = dict(media)
    outputs = fields.pop(ENCODER_OUTPUTS, None)
    if outputs is None:
        yield fields
        return
    generate = partial(generator_of(model).generate, **{ENCODER_OUTPUTS: outputs})
    with generate_replaced(model, generate):
        yield fields
