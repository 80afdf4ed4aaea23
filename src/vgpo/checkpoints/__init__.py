"""Checkpoints that cannot be lost, and what goes into them: trees of tensors and a hash of the weights.

`store` saves in two phases and finds the newest checkpoint that is intact; `tensors` writes state without pickle.
"""

from vgpo.checkpoints.store import CheckpointError, CheckpointStore, Found, strict_difference
from vgpo.checkpoints.tensors import load_tree, save_tree, weight_hash

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "Found",
    "load_tree",
    "save_tree",
    "strict_difference",
    "weight_hash",
]
