"""A generation batch as a table of rows: choose rows, join tables, cut into micro-batches.

TRL keeps a generation batch as a dict of tensors, lists and scalars. Here every value is aligned with the rows
(pixels are a list with one entry a row), so that rows can be moved without knowing what a field means.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

Batch = dict[str, Any]

# Fields that reach over prompt and response, padded on the left of one and on the right of the other.
WHOLE_SEQUENCE = ("token_type_ids", "mm_token_type_ids")
PROMPT = ("prompt_ids", "prompt_mask")
PICTURE = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "image_position_ids",
)


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows of a row-aligned batch, in the given order; scalars stay as they are."""
    index = torch.as_tensor(rows, dtype=torch.long)

    def select(value: Any) -> Any:
        if isinstance(value, list):
            return [value[i] for i in index.tolist()]
        return value[index.to(value.device)] if value is not None and value.ndim else value

    return {name: select(value) for name, value in batch.items()}


def join_rows(batches: Sequence[Batch], pad_token_id: int) -> Batch:
    """One row-aligned batch out of several, padded anew to the longest prompt and the longest response.

    A batch of text-only prompts lacks the fields of pictures: its rows get empty ones.
    """
    batches = [batch for batch in batches if len(batch["prompt_ids"])]
    templates = {name: value for batch in batches for name, value in batch.items()}
    batches = [
        {name: batch.get(name, _blank(value, batch, name)) for name, value in templates.items()} for batch in batches
    ]
    if len(batches) == 1:
        return batches[0]
    prompt_length = max(batch["prompt_ids"].shape[1] for batch in batches)
    joined: Batch = {}
    for name, template in templates.items():
        values = [batch[name] for batch in batches]
        if isinstance(template, list):
            joined[name] = [row for value in values for row in value]
        elif template is None or not template.ndim:
            joined[name] = template
        else:
            if name in WHOLE_SEQUENCE:
                shorts = [prompt_length - batch["prompt_ids"].shape[1] for batch in batches]
                values = [F.pad(value, (short, 0)) for value, short in zip(values, shorts, strict=True)]
            fill = pad_token_id if name in ("prompt_ids", "completion_ids") else 0
            joined[name] = torch.cat(_pad_to_widest(values, fill, left=name in PROMPT))
    return joined


def _blank(template: Any, batch: Batch, name: str) -> Any:
    """The value of a picture field for rows without a picture, in the form of another batch's."""
    num_rows = len(batch["prompt_ids"])
    if isinstance(template, list):
        return [template[0][:0] if isinstance(template[0], Tensor) else 0] * num_rows
    if template is None or not template.ndim:
        return template
    widths = (batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1],)
    return template.new_zeros(num_rows, *(widths if name in WHOLE_SEQUENCE else template.shape[1:]))


def group_order(num_rows: int, block: int) -> list[int]:
    """A random order of rows that moves blocks of `block` neighbouring rows as one."""
    starts = torch.randperm(num_rows // block) * block
    return (starts[:, None] + torch.arange(block)).flatten().tolist()


def align_rows(batch: Batch) -> Batch:
    """One entry per row in every field, pixels included."""
    return split_pixel_values_by_grid(batch)


def micro_batches(batch: Batch, num_chunks: int) -> list[Batch]:
    """Cut a row-aligned batch into equal parts in the form that a forward pass takes."""
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(batch, num_chunks)]


def _pad_to_widest(values: list[Tensor], fill: int, *, left: bool) -> list[Tensor]:
    """Pad all dimensions but the first to the largest among `values`."""
    widest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        shorts = [wide - size for wide, size in zip(widest, value.shape[1:], strict=True)]
        # F.pad counts dimensions from the last one.
        pads = [side for short in reversed(shorts) for side in ((short, 0) if left else (0, short))]
        padded.append(F.pad(value, pads, value=fill))
    return padded


def drop_empty_pictures(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook: rows that are all text-only come with picture tensors of length 0, which no model takes."""
    del model
    pixels = kwargs.get("pixel_values")
    if pixels is None or len(pixels):
        return args, kwargs
    return args, {name: value for name, value in kwargs.items() if name not in PICTURE}
