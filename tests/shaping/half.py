"""What a third way to shape advantages takes: a file like this, and a line in the table."""

from dataclasses import dataclass

from torch import Tensor

from vgpo.shaping import Scope, Shaped, Shaping, Signals


@dataclass(frozen=True, kw_only=True)
class HalfSettings:
    factor: float = 0.5


class Half(Shaping):
    """Scales the advantage where the policy has an entropy, which is everywhere."""

    Settings = HalfSettings

    def __init__(self, settings: HalfSettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"entropy"})

    @property
    def scope(self) -> Scope:
        return "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        assert signals.entropy is not None
        assert not signals.entropy.requires_grad
        return Shaped(self.settings.factor * advantages[:, None] * (signals.entropy >= 0))
