"""The log-probabilities from which a model really sampled, one number per token.

A forward hook sees the logits of each step of `generate`, before bans, top-p and penalties. They are reduced to one
number as soon as the sampled token is known: with the next step, which reads it. No logits outlive that.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.ratio import Ratio
from vgpo.shared_prompt import generator_of


class SampledLogProbs:
    """Collects log-probabilities of the tokens that a model samples, at a temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._columns: list[Tensor] = []
        self._logits: Tensor | None = None  # of the last step, (n, V)

    @torch.no_grad()
    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Forward hook of the model that generates."""
        del model, args
        if self._logits is not None:
            self._columns.append(self._taken(kwargs["input_ids"][:, -1]))
        self._logits = output.logits[:, -1]

    def log_probs(self, last_tokens: Tensor) -> Tensor:
        """Of all tokens, (B, T), once `generate` has returned.

        Args:
            last_tokens: column T of the responses, (B,).
        """
        return torch.stack([*self._columns, self._taken(last_tokens)], dim=1)

    def _taken(self, tokens: Tensor) -> Tensor:
        assert self._logits is not None, "generate() ran no forward pass"
        logits = self._logits.float() / self.temperature
        chosen = logits.logsumexp(-1)
        # A prompt that was computed once has one row of logits for all its rollouts.
        repeats = len(tokens) // len(logits)
        owners = torch.arange(len(tokens), device=tokens.device) // repeats
        return logits[owners, tokens] - chosen[owners]


@contextmanager
def record_sampled(model: nn.Module, temperature: float) -> Iterator[SampledLogProbs]:
    """Record the tokens that `model.generate` samples inside the block.

    Args:
        model: a decoder-only model of transformers, wrapped or not.
        temperature: of the sampling; the logits are divided by it.

    Raises:
        ValueError: no part of `model` generates.
    """
    recorder = SampledLogProbs(temperature)
    handle = generator_of(model).register_forward_hook(recorder.observe, with_kwargs=True)
    try:
        yield recorder
    finally:
        handle.remove()


def mean_gap(scored: Tensor, sampled: Tensor, mask: Tensor) -> Ratio:
    """Mean absolute difference of log-probabilities over tokens, in nats; all (B, T)."""
    return Ratio(((scored.detach() - sampled).abs() * mask).sum(), mask.sum())
