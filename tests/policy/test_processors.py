"""Processors that return or are called otherwise than TRL expects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import Qwen2VLConfig

from vgpo.policy.processors import suit_trainer, takes_token_types

MESSAGES = [{"role": "user", "content": "How many?"}]


class Other:
    """A processor whose first argument has another name."""

    return_mm_token_type_ids = False

    def apply_chat_template(self, conversations: Any, chat_template: Any = None, **options: Any) -> Any:
        return conversations, chat_template, options


class ReadsTensors(Other):
    """A processor that reads a field of its image processor as a tensor, as Ovis2's."""

    images_kwargs = {"crop_to_patches": True}  # noqa: RUF012  # as transformers has it

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        grids = [[1, 2]]
        return torch.tensor(grids)[0] if "return_tensors" in self.images_kwargs else grids[0].tolist()


def test_messages_are_passed_under_the_name_that_trl_gives_them() -> None:
    processor = Other()
    suit_trainer(processor, transformers.LlamaConfig())
    call = processor.apply_chat_template
    assert call(conversation=MESSAGES, chat_template="t", tokenize=True) == (MESSAGES, "t", {"tokenize": True})
    suit_trainer(processor, transformers.LlamaConfig())
    assert processor.apply_chat_template is call


def test_a_processor_that_reads_tensors_gets_them() -> None:
    processor = ReadsTensors()
    with pytest.raises(AttributeError):
        processor.apply_chat_template(MESSAGES)
    suit_trainer(processor, transformers.LlamaConfig())
    assert processor.images_kwargs == {"crop_to_patches": True, "return_tensors": "pt"}
    assert processor.apply_chat_template(MESSAGES).tolist() == [1, 2]
    assert ReadsTensors.images_kwargs == {"crop_to_patches": True}


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_a_processor_that_fails_for_another_reason_stays_as_it_is(error: type[Exception]) -> None:
    def fail(conversation: Any, **options: Any) -> None:
        raise error("no image")

    processor = SimpleNamespace(apply_chat_template=fail)
    suit_trainer(processor, transformers.LlamaConfig())
    assert vars(processor) == {"apply_chat_template": fail}


def test_token_types_are_asked_for_where_the_forward_pass_takes_them() -> None:
    assert takes_token_types(Qwen2VLConfig())
    assert not takes_token_types(transformers.LlavaConfig())
    assert not takes_token_types(transformers.LlamaConfig())  # no model of images and text
    processor = Other()
    suit_trainer(processor, Qwen2VLConfig())
    assert processor.return_mm_token_type_ids
