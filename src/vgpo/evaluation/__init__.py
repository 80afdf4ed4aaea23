"""Measure one model: greedy accuracy, accuracy without the image, and benchmarks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgpo.evaluation.accuracy import Evaluation, evaluate, wilson_interval

__all__ = ["Evaluation", "evaluate", "wilson_interval"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: every command of inspect-ai reads the table of benchmarks, and must not import torch.
    if name in __all__:
        return getattr(import_module("vgpo.evaluation.accuracy"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
