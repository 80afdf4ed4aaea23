"""A hash to test whether weights are equal."""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor


def weight_hash(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of all tensors, independent of their order and device.

    For a sharded tensor, only this process's shard counts. One tensor at a time is copied to the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors, key=lambda pair: pair[0]):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(json.dumps([name, str(local.dtype), list(local.shape)]).encode("ascii"))
        # Viewed as bytes: NumPy has no bfloat16.
        digest.update(local.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
