"""Two groups of ragged rows, scored and differentiated by a model whose parameters are spread over processes."""

from pathlib import Path

import torch
import torch.distributed
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trl.trainer.utils import add_fused_lm_head

from vgpo.focus import visual_token_ids
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt
from vgpo.policy.scoring import Rows, score_rows
from vgpo.toy.model import build_model, build_processor

LENGTHS = [6, 3, 1, 5, 2, 0, 4, 6]  # response tokens of each row
PROMPT_OF_ROW = [0, 0, 1, 0, 1, 1, 0, 1]
WIDTH = 6
RUNS = {"separate": (False, False), "shared": (True, False), "checkpointed": (True, True)}
"""Whether prompts are shared, and whether activations are checkpointed."""


def prompts() -> list[EncodedPrompt]:
    """Two prompts, one with an image and one with two."""
    processor = build_processor()
    pictures = [[Image.new("RGB", (56, 56), (30, 90, 200))], [Image.new("RGB", (28, 84), c) for c in ("red", "green")]]
    encoded = []
    for images in pictures:
        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": "What is the largest digit"})
        fields = processor.apply_chat_template(
            conversation=[[{"role": "user", "content": content}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        encoded.append(encoded_prompt(fields["input_ids"][0], len(images), fields, torch.device("cpu")))
    return encoded


def ragged_rows() -> Rows:
    """Prompts padded on the left, responses on the right."""
    of_rows = prompts()
    of_rows = [of_rows[number] for number in PROMPT_OF_ROW]
    width = max(len(prompt.token_ids) for prompt in of_rows)
    responses = torch.randint(20, 60, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.zeros(len(LENGTHS), width + WIDTH, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, response, length) in enumerate(zip(of_rows, responses, LENGTHS, strict=True)):
        start = width - len(prompt.token_ids)
        ids[row, start : width + length] = torch.tensor(prompt.token_ids + response[:length])
        mask[row, start : width + length] = 1
    return Rows(ids, mask, width, of_rows)


def shard(model: nn.Module) -> None:
    for layer in [*model.get_decoder().layers, *model.model.visual.blocks]:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def run(*, sharded: bool, share: bool, checkpointing: bool) -> dict[str, Tensor]:
    """Log-probabilities and similarities (B, T) of response tokens, 0 elsewhere, and every parameter's gradient."""
    model = build_model(build_processor().tokenizer, seed=1).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if sharded:
        shard(model)
    rows = ragged_rows()
    response = rows.attention_mask[:, rows.prompt_width :].bool()
    scores = score_rows(model, rows, visual_token_ids(model.config), share=share, similarity=True)
    weights = torch.randn(response.shape, generator=torch.Generator().manual_seed(1))
    (scores.log_probs * weights * response).sum().backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    similarity = scores.similarity.masked_fill(~response, 0.0)
    return {"log_probs": scores.log_probs.detach(), "similarity": similarity, **gradients}


def save_outputs(folder: Path) -> None:
    """The outputs of each of `RUNS` on the first process of several."""
    outputs = {name: run(sharded=True, share=share, checkpointing=cp) for name, (share, cp) in RUNS.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(outputs, folder / "outputs.pt")
