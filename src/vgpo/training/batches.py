"""A generation batch as a table of rows: choose rows, join tables, cut into micro-batches.

TRL keeps a generation batch as a dict of tensors, lists and scalars. Every tensor and list is aligned with the rows,
so that rows can be moved without knowing what a field means. Images are in a list of prompts that rows refer to.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from vgpo.policy.prompts import pad_to_widest
from vgpo.training.collective import Collective

Batch = dict[str, Any]

# Prefix of the diagnostics of rollouts that are shaped before the batch is split into micro-batches.
DIAGNOSTICS = "diagnostics/"
PROMPT = ("prompt_ids", "prompt_mask")  # padded on the left, everything else on the right


class RowNumbers(Dataset):
    """Replaces a dataset in the data loader: row i is the number i, and nothing is decoded."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row_index": index}


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows of a row-aligned batch, in the given order; scalars are unchanged."""
    index = torch.as_tensor(rows, dtype=torch.long)

    def select(value: Any) -> Any:
        if isinstance(value, list):
            return [value[i] for i in index.tolist()]
        return value[index.to(value.device)] if value is not None and value.ndim else value

    return {name: select(value) for name, value in batch.items()}


def join_rows(batches: Sequence[Batch], pad_token_id: int) -> Batch:
    """One row-aligned batch out of several, padded to the longest prompt and the longest response.

    A field that one of them lacks is left out: sampling may have recorded visual similarity in only some of them.
    """
    batches = [batch for batch in batches if len(batch["prompt_ids"])]
    if len(batches) == 1:
        return batches[0]
    joined: Batch = {}
    for name, template in batches[0].items():
        values = [batch[name] for batch in batches if name in batch]
        if len(values) < len(batches):
            continue
        if isinstance(template, list):
            joined[name] = [row for value in values for row in value]
        elif template is None or not template.ndim:
            joined[name] = template
        else:
            fill = pad_token_id if name in ("prompt_ids", "completion_ids") else 0
            joined[name] = torch.cat(pad_to_widest(values, fill, left=name in PROMPT))
    return joined


def group_order(num_rows: int, block: int) -> list[int]:
    """A random order of rows that moves blocks of `block` neighbouring rows as one."""
    starts = torch.randperm(num_rows // block) * block
    return (starts[:, None] + torch.arange(block)).flatten().tolist()


def split_diagnostics(batch: Batch) -> dict[str, Tensor]:
    """The diagnostics of the shaping in a batch that was shaped before it was split."""
    return {name.removeprefix(DIAGNOSTICS): value for name, value in batch.items() if name.startswith(DIAGNOSTICS)}


def action_mask(batch: Batch) -> Tensor:
    """Tokens that the policy sampled, without the output of tools; bool (B, T)."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def recorded_everywhere(collective: Collective, columns: Tensor | None, batch: Batch) -> Batch:
    """The similarities that sampling recorded, by their names in `vgpo.shaping.Signals`.

    None where a process lacks them, as all run the same passes.

    Args:
        collective: the processes of the run.
        columns: see `vgpo.training.passes.Rollout.sampled_similarity`.
        batch: with `completion_ids` (B, T) and their mask.
    """
    found = torch.tensor([columns is not None], dtype=torch.uint8, device=collective.device)
    if not collective.gather_rows(found).all():
        return {}
    assert columns is not None
    recorded = {"similarity": columns[:, 1:], "predicting_similarity": columns[:, :-1]}
    tokens, mask = batch["completion_ids"], batch["completion_mask"]
    # Steps after the end of a response are padding.
    return {name: as_wide(values, tokens) * mask for name, values in recorded.items()}


def as_wide(values: Tensor, tokens: Tensor) -> Tensor:
    """Values of responses (B, any T) cut, or padded with zeros, to the columns of tokens (B, T)."""
    width = tokens.shape[1]
    return F.pad(values[:, :width], (0, max(0, width - values.shape[1])))


def to_device(value: Any, device: torch.device) -> Any:
    """`value`, or the tensors in its dictionaries, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    return value
