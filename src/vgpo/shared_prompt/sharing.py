"""Decide whether rollouts share their prompt, in scoring and in generation; logs why not, or raises if required."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import GenerationConfig

from vgpo.shared_prompt.families import why_not_shared
from vgpo.shared_prompt.generation import prefill_once, why_not_prefill_once

logger = logging.getLogger(__name__)


class PromptSharing:
    """Shared prompts of the models of a run.

    Args:
        mode: 'auto' shares if that is exact, 'on' requires it, 'off' disables it.
        models: those that score rollouts, wrapped or not.
        measured: whether a measurement decides for families that are not proven, see `why_not_shared`.
        reentrant: whether gradient checkpointing is reentrant.
        level: of the log message that says why prompts are not shared.

    Attributes:
        scoring: whether an optimizer step computes a prompt once.
        generation: whether generation may compute a prompt once; False once it was found unable to.
        reason: why prompts are not shared in scoring; empty where they are, or were not asked to be.

    Raises:
        ValueError: mode is 'on', and it is not possible.
    """

    def __init__(
        self,
        mode: str,
        models: Sequence[nn.Module],
        *,
        measured: bool,
        reentrant: bool = False,
        level: int = logging.WARNING,
    ) -> None:
        self.mode = mode
        self.level = level
        self.scoring = self.generation = False
        self.reason = ""
        if mode == "off":
            return
        reason = next(filter(None, (why_not_shared(model, measured=measured) for model in models)), None)
        if reentrant:
            reason = (
                "reentrant gradient checkpointing gives no gradient to a prompt; set gradient_checkpointing_kwargs: "
                "{use_reentrant: false}"
            )
        if reason is not None:
            self.stop(reason)
            return
        self.scoring = self.generation = True

    def stop(self, reason: str) -> None:
        """From here on, each rollout computes its prompt itself.

        Raises:
            ValueError: mode is 'on'.
        """
        self._raise_if_required(reason)
        logger.log(self.level, "share_prompt is off, each rollout computes its prompt itself: %s.", reason)
        self.scoring = self.generation = False
        self.reason = reason

    def prefills_once(
        self, prompts: Sequence[object], group_size: int, model: nn.Module, config: GenerationConfig
    ) -> bool:
        """Whether generation can compute each prompt once for its group.

        Args:
            prompts: of all rollouts; those of a group are neighbours and one object.
            group_size: rollouts of a prompt.
            model: that generates.
            config: of the generation.

        Raises:
            ValueError: mode is 'on', and it is not possible.
        """
        if not self.generation or group_size == 1:
            return False
        groups = [prompts[i : i + group_size] for i in range(0, len(prompts), group_size)]
        if not all(len(group) == group_size and len(set(map(id, group))) == 1 for group in groups):
            return False
        if reason := why_not_prefill_once(model, config):
            self.stop_prefilling_once(reason)
        return self.generation

    @contextmanager
    def prefilled_once(self, model: nn.Module, config: GenerationConfig, group_size: int) -> Iterator[None]:
        """Inside the block, generation takes one prompt of each group and returns `group_size` rollouts of it."""
        before = config.num_return_sequences
        config.num_return_sequences = group_size
        try:
            with prefill_once(model):
                yield
        finally:
            config.num_return_sequences = before

    def stop_prefilling_once(self, reason: str) -> None:
        """From here on, read prompts once per rollout.

        Raises:
            ValueError: mode is 'on'.
        """
        self._raise_if_required(reason)
        logger.warning("Generation reads each prompt once per rollout, not once per group: %s.", reason)
        self.generation = False

    def _raise_if_required(self, reason: str) -> None:
        if self.mode == "on":
            raise ValueError(f"share_prompt='on' is not possible: {reason}. Set share_prompt to 'auto' or 'off'.")
