"""State of a host for a pass over token ids: the prompts, and the results of the pass."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vgpo.policy.prompts import EncodedPrompt
from vgpo.training.batches import Batch


@dataclass
class ScoringPass:
    """One or several log-probability passes over the same rows.

    Attributes:
        prompts: of the rows, in order; a rollout fills them when TRL tokenizes.
        required: names of the signals to capture, of `vgpo.shaping.Signals`.
        update: the micro-batch of an update, whose advantages are shaped as soon as its pass has run.
        captured: the signals of each pass, (B, T) each.
        later: the prompts of the micro-batches that follow in the same optimizer step, for the pass of an update.
        sampled: log-probabilities from which the responses were sampled (B, T), and their mask; to be compared with
            those of the pass.
    """

    prompts: list[EncodedPrompt] = field(default_factory=list)
    required: frozenset[str] = frozenset()
    update: Batch | None = None
    captured: list[dict[str, Tensor]] = field(default_factory=list)
    later: list[list[EncodedPrompt]] = field(default_factory=list)
    sampled: tuple[Tensor, Tensor] | None = None


@dataclass
class Rollout(ScoringPass):
    """The generation of responses to rows of the dataset, their rewards, and the passes that TRL runs over them.

    Attributes:
        rows: of the dataset, one per response.
        images: of each response: those of its prompt, then those that tools returned.
        rewards: of the responses of all processes, by reward function; (N, R).
        sampled_log_probs: of the responses as they were sampled, (B, T or more); None where they are not known.
        sampled_similarity: visual similarity of the last prompt token and of the responses as they were sampled,
            (B, 1 + T or more); None where it was not recorded.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[list[Any]] = field(default_factory=list)
    rewards: Tensor | None = None
    sampled_log_probs: Tensor | None = None
    sampled_similarity: Tensor | None = None
