"""Detect untrained token embeddings by their values."""

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_SAMPLED = 4096  # sampled vocabulary rows
NEAR_MEAN = 0.1  # of the usual distance: threshold for rows added to a model
SMALL = 0.5  # of the smallest usual norm


@torch.no_grad()
def untrained_rows(weight: Tensor, ids: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of `ids` whose embedding looks untrained.

    These are rows close to zero, rows close to the mean of all (as transformers initialises rows that are added to a
    model), and rows equal to those of other special or unused tokens. A randomly initialised row with the usual norm
    is not detected.

    Args:
        weight: The embedding matrix, (V, D).
        ids: Rows to check.
        others: Rows of special and unused tokens, with or without `ids`.
    """
    sampled = torch.linspace(0, len(weight) - 1, min(NUM_SAMPLED, len(weight)), device=weight.device).long().unique()
    usual = weight[sampled].float()
    mean = usual.mean(0)
    distance = (usual - mean).norm(dim=1).median()
    smallest = usual.norm(dim=1).quantile(0.05)
    found = []
    for token in ids:
        row = weight[token].float()
        rest = weight[[other for other in others if other != token]].float()
        is_copy = bool((rest == row).all(dim=1).any()) if len(rest) else False
        if is_copy or row.norm() < SMALL * smallest or (row - mean).norm() < NEAR_MEAN * distance:
            found.append(token)
    return found
