"""An untrained model that reads digits, and questions for it: with one image, two, and none."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from tests.families.build import picture
from vgpo.focus import decoder_of, visual_token_ids
from vgpo.inspection.compute import Inspector, Options
from vgpo.inspection.questions import Question, Stored, questions_of
from vgpo.toy.model import build_model, build_processor

SIZES = ((84, 56), (28, 56), (56, 56))


def small_model() -> tuple[PreTrainedModel, ProcessorMixin]:
    processor = build_processor()
    return build_model(processor.tokenizer, seed=3), processor


def rows(*counts: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[dict[str, Any]]:
    """Questions with so many images each."""
    return [
        row(
            "What is the largest digit" + " in the picture" * n,
            [picture(*sizes[i], seed=9 * n + i) for i in range(count)],
        )
        for n, count in enumerate(counts)
    ]


def row(problem: str, images: list[Image.Image]) -> dict[str, Any]:
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": problem}]
    return {"prompt": [{"role": "user", "content": content}], "images": images, "problem": problem, "answer": "7"}


def inspected(
    model: PreTrainedModel, processor: ProcessorMixin, asked: list[dict[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    inspector = Inspector(model, processor, Options(**{"max_new_tokens": 6, **options}))
    questions = questions_of(asked, range(len(asked)), ablations=inspector.options.ablations)
    return list(inspector.inspect(questions, len(asked), progress=False))


def read_by(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    asked: dict[str, Any],
    responses: list[list[int]],
    **options: Any,
) -> dict[str, Any]:
    """A question with responses that are there already."""
    inspector = Inspector(model, processor, Options(**options))
    question = Question(0, asked, stored=[Stored(ids, float(place)) for place, ids in enumerate(responses)])
    (found,) = inspector.inspect(iter([question]), 1, progress=False)
    return found


@torch.no_grad()
def plain_states(
    model: PreTrainedModel, processor: ProcessorMixin, asked: dict[str, Any], response: list[int]
) -> tuple[Tensor, Tensor]:
    """Last hidden states of visual tokens (V, D) and of the response (T, D), from one unpadded row."""
    content = [*({"type": "image", "image": image} for image in asked["images"]), asked["prompt"][0]["content"][-1]]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = inputs.pop("input_ids")
    length = prompt.shape[1]
    ids = torch.cat([prompt, torch.tensor([response])], dim=1)
    types = {name: inputs.pop(name) for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    types = {
        name: torch.cat([value, torch.zeros(1, len(response), dtype=value.dtype)], 1) for name, value in types.items()
    }
    inputs["attention_mask"] = torch.ones_like(ids)
    states: list[Tensor] = []
    handle = decoder_of(model).register_forward_hook(lambda *seen: states.append(seen[2].last_hidden_state[0]))
    model(input_ids=ids, **inputs, **types)
    handle.remove()
    visual = torch.isin(ids[0], torch.tensor(visual_token_ids(model.config)))
    return states[0][visual], states[0][length:]


def token_ids(processor: ProcessorMixin, rollout: dict[str, Any]) -> list[int]:
    """Ids of tokens that are all in the vocabulary by themselves."""
    tokenizer = processor.tokenizer
    by_text = {tokenizer.decode([token]): token for token in reversed(range(len(tokenizer)))}
    return [by_text[token] for token in rollout["tokens"]]
