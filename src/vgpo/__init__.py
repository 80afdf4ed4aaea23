"""Visually-Guided Policy Optimization: RL that keeps a vision-language model looking at the picture."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vgpo.equations import (
        ReweightedAdvantages,
        VGPOSettings,
        reweight_advantages,
        visual_prototype,
        visual_similarity,
    )

__all__ = [
    "ReweightedAdvantages",
    "VGPOSettings",
    "__version__",
    "reweight_advantages",
    "visual_prototype",
    "visual_similarity",
]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `vgpo --help` must not wait for torch.
    if name in __all__:
        return getattr(import_module("vgpo.equations"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
