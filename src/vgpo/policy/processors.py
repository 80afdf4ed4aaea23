"""Adapt processors to the calls of TRL and the forward pass of their model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PretrainedConfig, ProcessorMixin

from vgpo.policy.blank_media import blank_prompt


def suit_trainer(processor: ProcessorMixin, config: PretrainedConfig) -> None:
    """Make a processor accept TRL's calls and return the inputs that its model's forward pass takes."""
    if "conversation" not in inspect.signature(processor.apply_chat_template).parameters:
        processor.apply_chat_template = ChatTemplate(processor.apply_chat_template)
    if takes_token_types(config):
        processor.return_mm_token_type_ids = True
    if not takes_lists(processor):
        processor.images_kwargs = {**getattr(processor, "images_kwargs", {}), "return_tensors": "pt"}


@dataclass(frozen=True)
class ChatTemplate:
    """`apply_chat_template` of a processor whose first argument has another name, such as Qwen3-Omni's
    `conversations`."""

    apply: Callable[..., Any]

    def __call__(self, conversation: Any, **options: Any) -> Any:
        return self.apply(conversation, **options)


def takes_token_types(config: PretrainedConfig) -> bool:
    """Whether a model's forward pass takes `mm_token_type_ids`, which some processors only return on request."""
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    return kind is not None and "mm_token_type_ids" in inspect.signature(kind.forward).parameters


def takes_lists(processor: ProcessorMixin) -> bool:
    """Whether a processor works without a request for tensors, as in TRL."""
    try:
        processor.apply_chat_template(blank_prompt(), tokenize=True, return_dict=True)
    except AttributeError:  # Ovis2's: 'list' object has no attribute 'tolist'
        return False
    except Exception:  # noqa: BLE001  # of whatever kind: `check_image_token` says what it is
        return True
    return True
