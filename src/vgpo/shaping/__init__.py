"""Ways to turn one advantage per rollout into one per token. A new way is a file here and a line in `SHAPINGS`."""

from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, build_shaping
from vgpo.shaping.none import NoShaping
from vgpo.shaping.vgpo import VGPOShaping

SHAPINGS: dict[str, type[Shaping]] = {
    "none": NoShaping,
    "vgpo": VGPOShaping,
}

__all__ = ["SHAPINGS", "NoShaping", "Scope", "Shaped", "Shaping", "Signals", "VGPOShaping", "build_shaping"]
