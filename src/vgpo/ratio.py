"""A mean that can be accumulated over micro-batches and processes."""

from typing import NamedTuple

from torch import Tensor


class Ratio(NamedTuple):
    """A mean that can be accumulated over micro-batches and processes: sums first, division last."""

    total: Tensor
    number: Tensor
