"""Communication between the processes of a run. All processes call these functions together, with the same kind of
values."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Collective(Protocol):
    """The processes of a run, seen from one of them."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """Where this process has its tensors."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes in order: (B, ...) -> (world_size B, ...).

        Rows (B, T) are padded on the right with zeros to the widest process; T may differ, B may not.
        """


def largest(collective: Collective, number: int) -> int:
    """The largest of a number of each process."""
    if collective.world_size == 1:
        return number
    return int(collective.gather_rows(torch.tensor([number], device=collective.device)).max())


def all_equal(collective: Collective, numbers: Sequence[int]) -> bool:
    """Whether all processes have the same list of numbers."""
    if collective.world_size == 1:
        return True
    checksum = torch.tensor([zlib.crc32(repr(list(numbers)).encode())], device=collective.device)
    return len(collective.gather_rows(checksum).unique()) == 1


@dataclass(frozen=True)
class AccelerateCollective:
    """Over the processes of an accelerator."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum")

    def gather_rows(self, rows: Tensor) -> Tensor:
        if rows.ndim == 1:
            return self.accelerator.gather(rows)
        # Padding would make integers of booleans, on those processes only that have to pad.
        values = rows.byte() if rows.dtype == torch.bool else rows
        return self.accelerator.gather(self.accelerator.pad_across_processes(values, dim=1)).to(rows.dtype)


@dataclass(frozen=True)
class SingleProcess:
    """A run of one process: nothing is exchanged."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        return value

    def gather_rows(self, rows: Tensor) -> Tensor:
        return rows
