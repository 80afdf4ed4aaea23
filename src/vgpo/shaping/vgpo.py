"""Visually-Guided Policy Optimization (arXiv 2604.09349): more credit where the model looks at the image."""

from torch import Tensor

from vgpo.equations import FocusState, ReweightedAdvantages, VGPOSettings, reweight_advantages
from vgpo.metric_names import FOCUS_GATE_RATE, SHAPING_ROLLOUT_FACTOR_SPREAD, SHAPING_TOKEN_FACTOR_SPREAD
from vgpo.ratio import Ratio
from vgpo.shaping.base import Scope, Shaped, Shaping, Signals, broadcast_advantages, mean_abs_deviation_from_one

# Signal by the state that defines the focus of a token.
SIGNAL_OF: dict[FocusState, str] = {"reading": "similarity", "predicting": "predicting_similarity"}


class VGPOShaping(Shaping):
    """Reweights tokens within a rollout and rollouts within their group (Eq. 5-12)."""

    Settings = VGPOSettings

    def __init__(self, settings: VGPOSettings) -> None:
        self.settings = settings

    @property
    def signals(self) -> frozenset[str]:
        # With both levels off every factor is 1: no signals needed.
        return frozenset({SIGNAL_OF[self.settings.focus_state]} if self.settings.intra or self.settings.inter else ())

    @property
    def scope(self) -> Scope:
        if self.signals and self.settings.preset == "released":
            return "batch"  # its focus is offset by the smallest similarity of the batch
        return "group" if self.settings.inter else "rollout"

    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        if not self.signals:
            return broadcast_advantages(advantages, signals)
        reweighted = reweight_advantages(
            advantages,
            similarity_of(signals, self.settings.focus_state),
            signals.response_mask,
            signals.group_ids,
            self.settings,
            visual_rows=signals.visual_rows,
        )
        return shaped_by(reweighted, signals)


def similarity_of(signals: Signals, focus_state: FocusState) -> Tensor:
    """The similarity from which the focus of each token is computed; (B, T)."""
    similarity = signals.similarity if focus_state == "reading" else signals.predicting_similarity
    assert similarity is not None
    return similarity


def shaped_by(reweighted: ReweightedAdvantages, signals: Signals) -> Shaped:
    """The factors as diagnostics; gate rate, and the mean distance of both factors from 1, over rows with an image."""
    scored_mask = signals.scored_mask
    diagnostics = {
        "gate": reweighted.gate,
        "token_factor": reweighted.token_factor,
        "rollout_factor": reweighted.rollout_factor,
    }
    statistics = {
        FOCUS_GATE_RATE: Ratio(reweighted.gate.sum(), scored_mask.sum()),
        SHAPING_TOKEN_FACTOR_SPREAD: mean_abs_deviation_from_one(reweighted.token_factor, scored_mask),
        SHAPING_ROLLOUT_FACTOR_SPREAD: mean_abs_deviation_from_one(reweighted.rollout_factor, signals.visual_rows),
    }
    return Shaped(reweighted.advantages, diagnostics, statistics)
