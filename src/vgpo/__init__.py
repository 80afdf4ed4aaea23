"""Visually-Guided Policy Optimization: RL that keeps a vision-language model looking at the image."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from vgpo.equations import (
        ReweightedAdvantages,
        VGPOSettings,
        reweight_advantages,
        visual_prototype,
        visual_similarity,
    )
    from vgpo.inspection.compute import inspect

# Where each public name is defined.
_HOMES = {
    "ReweightedAdvantages": "vgpo.equations",
    "VGPOSettings": "vgpo.equations",
    "inspect": "vgpo.inspection.compute",
    "reweight_advantages": "vgpo.equations",
    "visual_prototype": "vgpo.equations",
    "visual_similarity": "vgpo.equations",
}

__all__ = [
    "ReweightedAdvantages",
    "VGPOSettings",
    "__version__",
    "inspect",
    "reweight_advantages",
    "visual_prototype",
    "visual_similarity",
]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `vgpo --help` must not wait for torch.
    if name == "__version__":
        return version("vgpo")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
