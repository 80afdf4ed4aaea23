"""The interface of an advantage shaping."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from vgpo.ratio import Ratio
from vgpo.text import did_you_mean

Scope = Literal["rollout", "group", "batch"]

# Signals that require images.
IMAGE_SIGNALS = frozenset(
    {
        "similarity", "predicting_similarity", "layer_similarity", "corrupted_log_probs", "text_only_log_probs",
        "text_only_accuracy",
    }
)  # fmt: skip

# Cosines of adjacent states with the visual prototype: a pass computes both at once.
PROTOTYPE_SIGNALS = frozenset({"similarity", "predicting_similarity"})


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Inputs of a shaping. Optional signals are present if the shaping declares them."""

    response_mask: Tensor
    """Tokens that the policy sampled: no padding, no tool output; bool (B, T)."""
    group_ids: Tensor
    """Rollouts of one sample of one prompt share a number; int64 (B,)."""
    visual_rows: Tensor
    """Rows with a visual token in their prompt; bool (B,)."""
    similarity: Tensor | None = None
    """Cosine with the prompt's visual prototype (Eq. 3) of the state after reading each token; (B, T)."""
    predicting_similarity: Tensor | None = None
    """The same for the state that predicts each token; (B, T)."""
    layer_similarity: Tensor | None = None
    """Cosine with a visual token, averaged over the visual tokens and over all layers; (B, T)."""
    entropy: Tensor | None = None
    """Entropy of the policy's full softmax at each token, detached, in nats; (B, T)."""
    log_probs: Tensor | None = None
    """Log-probability of each token under the policy that sampled it, detached; (B, T)."""
    corrupted_log_probs: Tensor | None = None
    """The same with half of the image patches black; (B, T)."""
    text_only_log_probs: Tensor | None = None
    """The same with the prompt text only, without images; (B, T)."""
    progress: Tensor | None = None
    """Share of the training's steps that are done, in [0, 1], equal in all rows; (B,)."""
    text_only_accuracy: Tensor | None = None
    """Share of correct answers to the prompt without its images, in [0, 1], equal in the rows of a prompt; (B,)."""
    chance: Tensor | None = None
    """Probability of guessing the correct answer: 1 / options in multiple choice, else 0; (B,)."""
    stratum: Tensor | None = None
    """Number of each row's stratum in `Shaping.strata`; int64 (B,)."""

    @property
    def scored_mask(self) -> Tensor:
        """Tokens that image-based shapings can score: those that the policy sampled, in rows with an image; bool (B,
        T)."""
        return self.response_mask & self.visual_rows[:, None]


@dataclass(frozen=True)
class Shaped:
    """The result of a shaping."""

    advantages: Tensor
    """(B, T)"""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Per-token (B, T) or per-rollout (B,) tensors, stored with the rollouts."""
    statistics: dict[str, Ratio] = field(default_factory=dict)
    """Metrics of this batch by their full name."""


def broadcast_advantages(advantages: Tensor, signals: Signals) -> Shaped:
    """Every token of a rollout has its rollout's advantage, as in GRPO and DAPO."""
    return Shaped(advantages[:, None].expand(signals.response_mask.shape))


def mean_abs_deviation_from_one(factor: Tensor, mask: Tensor) -> Ratio:
    """Mean distance of a factor from 1 where `mask` holds; both (B, T) or both (B,)."""
    return Ratio((factor - 1).abs().mul(mask).sum(), mask.sum())


class Shaping(ABC):
    """Turns (B,) advantages into (B, T). A final class; its settings are a dataclass."""

    Settings: ClassVar[type]
    strata: tuple[str, ...] = ("all",)
    """Names of the strata of the data; a host sets it before the first batch if `stratum_column` names one."""

    @abstractmethod
    def __init__(self, settings: Any) -> None: ...

    @property
    @abstractmethod
    def signals(self) -> frozenset[str]:
        """Names of the optional `Signals` fields that `shape` reads; the host computes only those."""

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """What a rollout's result depends on: only itself, its group, or the complete rollout batch."""

    @property
    def stratum_column(self) -> str | None:
        """The column of the dataset whose values divide the rollouts into strata."""
        return None

    @property
    def blind_rollouts(self) -> int:
        """Number of rollouts without images per prompt, for `Signals.text_only_accuracy`."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """State that the shaping carries between batches, numbers and text; saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        del state

    @abstractmethod
    def shape(self, advantages: Tensor, signals: Signals) -> Shaped:
        """Shape the group-relative advantages (B,). No gradient may flow through the result.

        A shaping whose scope is "batch" may keep a state: its host passes each rollout batch exactly once.
        """


def build_shaping(name: str, options: Mapping[str, Any]) -> Shaping:
    """The registered shaping `name` with its settings taken from `options`.

    Raises:
        ValueError: for an unknown name or option, with the nearest known one.
    """
    from vgpo.shaping import SHAPINGS  # the table imports this module

    if name not in SHAPINGS:
        raise ValueError(f"shaping={name!r} is not known{did_you_mean(name, SHAPINGS)}. Known: {', '.join(SHAPINGS)}.")
    shaping = SHAPINGS[name]
    known = [f.name for f in dataclasses.fields(shaping.Settings)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"shaping {name!r} has no option {option!r}{did_you_mean(option, known)}. "
                f"Its options: {', '.join(known) or 'none'}."
            )
    return shaping(shaping.Settings(**options))
