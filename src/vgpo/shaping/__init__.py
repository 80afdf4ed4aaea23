"""Ways to turn one advantage per rollout into one per token. To add one, add a file here and a line in `SHAPINGS`."""

from vgpo.shaping.adaptive import AdaptiveShaping
from vgpo.shaping.base import IMAGE_SIGNALS, PROTOTYPE_SIGNALS, Scope, Shaped, Shaping, Signals, build_shaping
from vgpo.shaping.entropy import EntropyShaping
from vgpo.shaping.kl_perception import KLPerceptionShaping
from vgpo.shaping.none import NoShaping
from vgpo.shaping.pepo import PEPOShaping
from vgpo.shaping.pgpo import PGPOShaping
from vgpo.shaping.vgpo import VGPOShaping

SHAPINGS: dict[str, type[Shaping]] = {
    "none": NoShaping,
    "vgpo": VGPOShaping,
    "adaptive": AdaptiveShaping,
    "entropy": EntropyShaping,
    "kl_perception": KLPerceptionShaping,
    "pgpo": PGPOShaping,
    "pepo": PEPOShaping,
}

__all__ = [
    "IMAGE_SIGNALS",
    "PROTOTYPE_SIGNALS",
    "SHAPINGS",
    "AdaptiveShaping",
    "EntropyShaping",
    "KLPerceptionShaping",
    "NoShaping",
    "PEPOShaping",
    "PGPOShaping",
    "Scope",
    "Shaped",
    "Shaping",
    "Signals",
    "VGPOShaping",
    "build_shaping",
]
