"""A mean that adds up over micro-batches and processes."""

from typing import NamedTuple

from torch import Tensor


class Ratio(NamedTuple):
    """A mean that adds up over micro-batches and processes: the sums first, the division last."""

    total: Tensor
    number: Tensor
