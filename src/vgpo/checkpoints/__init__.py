"""Crash-safe checkpoints and their content: training state and a hash of the weights.

`store` saves in two phases and finds the newest checkpoint that is intact; `state` writes and reads training state.
"""

from vgpo.checkpoints.state import load_state, save_state
from vgpo.checkpoints.store import (
    MANIFEST,
    CheckpointError,
    CheckpointStore,
    Found,
    put_in_place,
    seal,
    strict_difference,
)
from vgpo.checkpoints.weights import weight_hash

__all__ = [
    "MANIFEST",
    "CheckpointError",
    "CheckpointStore",
    "Found",
    "load_state",
    "put_in_place",
    "save_state",
    "seal",
    "strict_difference",
    "weight_hash",
]
