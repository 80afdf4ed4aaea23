"""Visual similarity of packed sequences: concatenated, without padding between them."""

from collections.abc import Callable

import torch
from torch import Tensor

_EPSILON = 1e-8  # as in `vgpo.equations.visual_similarity`
_BLOCK_ELEMENTS = 2**23


def identity(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def ragged_similarity(
    hidden: Tensor,
    sequence: Tensor,
    visual: Tensor,
    num_sequences: int,
    all_reduce: Callable[[Tensor], Tensor] = identity,
) -> Tensor:
    """Cosine of each token with the mean of its sequence's visual tokens: equations (2) and (3).

    The same values as `visual_similarity(hidden, visual_prototype(hidden, visual))` of `vgpo.equations` for each
    single sequence, without a loop over sequences or a host synchronisation.

    Args:
        hidden: (N, D) states after the final norm, any floating dtype; computed in float32. States of padding may be
        NaN.
        sequence: int64 (N,), the number of each token's sequence, 0 to num_sequences - 1, in any order. Any other
            value, negative or too large, marks padding.
        visual: bool (N,), the visual tokens of the prompts; ignored at padding.
        num_sequences: over all processes, including those without a token on this process.
        all_reduce: if several processes hold parts of the same sequences: takes a float32 tensor (num_sequences, D +
        1) and returns its sum over processes, in place or not. Each process calls it exactly once.

    Returns:
        float32 (N,) in [-1, 1]; 0 at padding and in sequences without a visual token, NaN only where a state is not
        finite.

    Raises:
        ValueError: for a wrong shape or dtype.
    """
    _check(hidden, sequence, visual)
    N, D = hidden.shape
    is_token = (sequence >= 0) & (sequence < num_sequences)
    row = torch.where(is_token, sequence, num_sequences)  # one extra row for padding
    source = torch.where(visual, row, num_sequences)
    blocks = _token_blocks(N, D)

    total = hidden.new_zeros(num_sequences + 1, D + 1, dtype=torch.float32)  # sums of states, and their counts
    for block in blocks:
        total[:, :D].index_add_(0, source[block], hidden[block].float())
    total[:, D].index_add_(0, source, torch.ones_like(source, dtype=torch.float32))

    total = all_reduce(total[:num_sequences].contiguous())
    count = total[:, D:]
    prototype = torch.nn.functional.pad(total[:, :D] / count, (0, 0, 0, 1))
    length = torch.linalg.vector_norm(prototype, dim=-1)
    has_visual = torch.nn.functional.pad(count[:, 0] > 0, (0, 1))

    similarity = hidden.new_empty(N, dtype=torch.float32)
    for block in blocks:
        states, rows = hidden[block].float(), row[block]
        # An elementwise product and a sum: autocast would round a matrix product to half precision.
        dot = (states * prototype[rows]).sum(dim=-1)
        scale = torch.linalg.vector_norm(states, dim=-1) * length[rows] + _EPSILON
        similarity[block] = (dot / scale).clamp(min=-1, max=1)
    return torch.where(has_visual[row], similarity, 0)


def _token_blocks(num_tokens: int, hidden_size: int) -> list[slice]:
    """Blocks of tokens whose float32 states fit into memory next to the model."""
    size = max(1, _BLOCK_ELEMENTS // max(1, hidden_size))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


def _check(hidden: Tensor, sequence: Tensor, visual: Tensor) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden has shape {tuple(hidden.shape)} and dtype {hidden.dtype}, expected floats (N, D).")
    for name, tensor, dtype in (("sequence", sequence, torch.int64), ("visual", visual, torch.bool)):
        if tensor.shape != hidden.shape[:1] or tensor.dtype != dtype:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected {dtype} (N,) = "
                f"({len(hidden)},): one value per token of hidden."
            )
