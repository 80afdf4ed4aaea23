"""Rows that share a prompt, packed into one row per prompt.

A packed row is the prompt without its last token, and then for each of its responses the prompt's last token and the
response. So every response is predicted from within its own stretch, and the prompt is computed once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.focus import decoder_of, last_hidden_state
from vgpo.shared_prompt.attention import LAYOUT, PromptLayout


@dataclass(frozen=True)
class Packing:
    """Where tokens of B rows (P prompt columns, then T response columns) go in n packed rows of length L.

    Args:
        source: (n, L), the place of each packed token in the flattened rows; padding repeats the prompt's last token,
            which stands for no image.
        attention_mask: (n, L), 1 for tokens and 0 for padding.
        tokens_of_earlier_responses: (n, L), how many tokens of earlier responses lie before a token of a response.
        responses: (B, 1 + T), the place in the flattened packed rows of the last prompt token and of each response
            token; 0 for padding.
        representative_rows: for each packed row, the first of the rows that share its prompt.
        layout: the same for attention.
    """

    source: Tensor
    attention_mask: Tensor
    tokens_of_earlier_responses: Tensor
    responses: Tensor
    representative_rows: list[int]
    layout: PromptLayout

    def pack(self, rows: Tensor) -> Tensor:
        """Values of the tokens of rows (B, P + T), in packed rows (n, L)."""
        return rows.flatten()[self.source]

    def unpack(self, packed: Tensor) -> Tensor:
        """From packed rows (n, L, ...), the last prompt token and the response of each row (B, 1 + T, ...)."""
        flat = packed.flatten(0, 1)
        return flat.index_select(0, self.responses.flatten()).view(*self.responses.shape, *flat.shape[1:])

    def responses_of(self, packed: Tensor) -> Tensor:
        """From packed rows (n, L, ...), the responses (B, T, ...)."""
        return self.unpack(packed)[:, 1:]

    def pack_inputs(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook of the decoder: each response follows its prompt directly, and sees only that."""
        del decoder
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(self.layout.length, device=self.source.device).unsqueeze(0)
        # A mask of four dimensions reaches the attention as it is; of size 0, nothing but the layout's own can use it.
        mask = torch.empty(1, 1, 0, 0, device=self.source.device)
        return args, {
            **kwargs,
            "position_ids": positions - self.tokens_of_earlier_responses,
            "attention_mask": mask,
            LAYOUT: self.layout,
        }

    def unpack_outputs(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the decoder: from here on, rows again, of what predicts and of responses."""
        del decoder, args
        hidden = self.unpack(last_hidden_state(output))
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output


def pack_prompts(attention_mask: Tensor, prompt_width: int, prompt_of_row: Sequence[int]) -> Packing:
    """Plan how rows are packed.

    Args:
        attention_mask: (B, P + T); prompts are padded on the left, responses on the right.
        prompt_width: P.
        prompt_of_row: which rows share a prompt: equal numbers, anywhere in the batch.
    """
    num_rows, width = attention_mask.shape
    mask = attention_mask.bool()
    halves = torch.stack([mask[:, :prompt_width].sum(1), mask[:, prompt_width:].sum(1)])
    prompt_lengths, response_lengths = halves.tolist()
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompt_of_row):
        groups.setdefault(prompt, []).append(row)

    stretches = {rows[0]: [1 + response_lengths[row] for row in rows] for rows in groups.values()}
    shared = [prompt_lengths[owner] - 1 for owner in stretches]
    length = max(prompt + sum(lengths) for prompt, lengths in zip(shared, stretches.values(), strict=True))
    last = prompt_width - 1  # the column of a prompt's last token
    source = torch.tensor([[owner * width + last] for owner in stretches]).repeat(1, length)
    tokens_of_earlier_responses = torch.zeros_like(source)
    packed_mask = torch.zeros_like(source)
    responses = torch.zeros(num_rows, 1 + width - prompt_width, dtype=torch.long)
    for i, rows in enumerate(groups.values()):
        source[i, : shared[i]] = rows[0] * width + torch.arange(last - shared[i], last)
        start = shared[i]
        for row in rows:
            stretch = torch.arange(1 + response_lengths[row])
            end = start + len(stretch)
            source[i, start:end] = row * width + last + stretch
            tokens_of_earlier_responses[i, start:end] = start - shared[i]
            responses[row, : len(stretch)] = i * length + start + stretch
            start = end
        packed_mask[i, :start] = 1
    device = attention_mask.device
    return Packing(
        source=source.to(device),
        attention_mask=packed_mask.to(device),
        tokens_of_earlier_responses=tokens_of_earlier_responses.to(device),
        responses=responses.to(device),
        representative_rows=list(stretches),
        layout=PromptLayout(tuple(shared), tuple(map(tuple, stretches.values())), length, device),
    )


@contextmanager
def packed_rows(model: nn.Module, packing: Packing) -> Iterator[None]:
    """Inside the block, `model` takes packed rows, and its decoder gives (B, 1 + T, D) back.

    Works around any forward of a proven family, wrapped or not, with or without gradients and checkpointing.
    """
    decoder = decoder_of(model)
    handles = [
        decoder.register_forward_pre_hook(packing.pack_inputs, with_kwargs=True),
        decoder.register_forward_hook(packing.unpack_outputs),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
