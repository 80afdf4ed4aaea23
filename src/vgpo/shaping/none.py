"""No shaping: every token of a rollout has its rollout's advantage, as in GRPO and DAPO."""

from dataclasses import dataclass

from torch import Tensor

from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, broadcast_advantages


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """No shaping has nothing to set."""


class NoShaping(Shaping):
    """The base algorithm."""

    Settings = NoSettings

    def __init__(self, settings: NoSettings) -> None:
        del settings

    @property
    def signals(self) -> frozenset[str]:
        return frozenset()

    @property
    def scope(self) -> Scope:
        return "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        return broadcast_advantages(advantages, signals)
