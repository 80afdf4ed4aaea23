"""Rows with images on one process and rows of text on another, with parameters that are spread over both (FSDP2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer.utils import add_fused_lm_head

from tests.families.build import Prompt, encode_prompts, picture
from tests.processes import NUM_PROCESSES, run_in_processes
from vgpo.focus import visual_token_ids
from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.processors import suit_trainer
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt
from vgpo.policy.scoring import Rows, score_rows
from vgpo.shared_prompt import why_not_shared

PROMPTS: list[list[Prompt]] = [
    [("How many?", [picture(56, 84, seed=1), picture(28, 56, seed=2)]), ("What is it", [picture(112, 56, seed=3)])],
    [("Why?", []), ("How many are there?", [])],
]
"""Of the first process and of the second."""
PROMPT_OF_ROW = [0, 1, 0, 1]
LENGTHS = [4, 2, 1, 3]  # response tokens of each row
WIDTH = max(LENGTHS)

Outputs = dict[str, Tensor]


def load(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    processor = AutoProcessor.from_pretrained(folder)
    suit_trainer(processor, model.config)
    return model, processor


def blank_of(processor: ProcessorMixin) -> dict[str, Tensor]:
    """The trainer's inputs for its blank image."""
    fields = processor.apply_chat_template(
        blank_prompt(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return encoded_prompt(fields["input_ids"][0].tolist(), 1, fields, torch.device("cpu")).media


def rows_of(processor: ProcessorMixin, rank: int) -> Rows:
    """Two groups of ragged rows, prompts padded on the left."""
    texts = PROMPTS[rank]
    prompts: list[EncodedPrompt] = []
    for (_, images), fields in zip(texts, encode_prompts(processor, texts), strict=True):
        ids = fields["input_ids"][0].tolist()
        prompts.append(encoded_prompt(ids, len(images), fields, torch.device("cpu")))
    of_rows = [prompts[number] for number in PROMPT_OF_ROW]
    width = max(len(prompt.token_ids) for prompt in prompts)
    size = len(processor.tokenizer)
    generator = torch.Generator().manual_seed(rank)
    # Bytes come last in the vocabulary: no token of a response stands for an image.
    ids = torch.randint(size - 256, size, (len(of_rows), width + WIDTH), generator=generator)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(zip(of_rows, LENGTHS, strict=True)):
        start = width - len(prompt.token_ids)
        ids[row, start:width] = torch.tensor(prompt.token_ids)
        mask[row, start : width + length] = 1
    return Rows(ids, mask, width, of_rows)


def score(model: PreTrainedModel, processor: ProcessorMixin, rank: int, blank: dict[str, Tensor] | None) -> Outputs:
    """Log-probabilities (B, T) of the rows of a process, and the gradient of their weighted sum by parameter."""
    rows = rows_of(processor, rank)
    share = why_not_shared(model) is None
    scores = score_rows(model, rows, visual_token_ids(model.config), share=share, similarity=True, blank=blank)
    mask = rows.attention_mask[:, rows.prompt_width :].bool()
    log_probs = scores.log_probs.masked_fill(~mask, 0.0)
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(10 + rank))
    model.zero_grad(set_to_none=True)
    (log_probs * weights).sum().backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {"log_probs": log_probs.detach(), **gradients}


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard(model: nn.Module) -> None:
    """Spread every layer of decoder and vision tower by itself, and the rest together."""
    for module in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(module)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def score_family(checkpoint: Path, out: Path, with_blank: bool) -> None:
    """What each of two processes does: its outputs go to a file of its own."""
    rank = torch.distributed.get_rank()
    model, processor = load(checkpoint)
    shard(model)
    outputs = score(model, processor, rank, blank_of(processor) if with_blank else None)
    torch.save(outputs, out / f"{rank}.pt")


def check_two_processes(checkpoint: Path, out: Path) -> None:
    """Log-probabilities of each process, and the mean of their gradients, against one process without FSDP."""
    out.mkdir()
    run_in_processes(score_family, checkpoint, out, True)
    actual = [torch.load(out / f"{rank}.pt") for rank in range(NUM_PROCESSES)]
    model, processor = load(checkpoint)
    expected = [score(model, processor, rank, None) for rank in range(NUM_PROCESSES)]
    for rank in range(NUM_PROCESSES):
        torch.testing.assert_close(actual[rank]["log_probs"], expected[rank]["log_probs"], rtol=0, atol=1e-5)
    pictures, text = (outputs.keys() for outputs in expected)
    assert pictures > text  # the vision tower
    assert actual[0].keys() == pictures
    for name in pictures - {"log_probs"}:
        mean = (expected[0][name] + expected[1].get(name, torch.zeros(()))) / 2
        error = float((actual[0][name] - mean).norm() / mean.norm().clamp(min=1e-2))
        assert error <= 3e-4, (name, error)
