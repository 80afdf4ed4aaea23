"""Record the log-probability and the visual similarity of each token during sampling.

A forward hook gets the logits of each step of `generate`, before bans, top-p and penalties. They are reduced to one
number as soon as the sampled token is known, in the next step, and then freed. Another hook gets the hidden state of
each token in the step that reads it. No step reads the last tokens of the longest responses: for these, one more step
is run on the existing cache.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.equations import visual_prototype, visual_similarity
from vgpo.focus import decoder_of, last_hidden_state
from vgpo.ratio import Ratio
from vgpo.shared_prompt import generate_replaced, generator_of

_POSITIONS = ("position_ids", "cache_position")


class SampledLogProbs:
    """Collects log-probabilities of the tokens that a model samples, at a temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._columns: list[Tensor] = []
        self._logits: Tensor | None = None  # of the last step, (n, V)
        self.is_complete = False  # whether a step has read the last tokens

    @torch.no_grad()
    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Forward hook of the model that generates."""
        del model, args
        if self._logits is not None:
            self._columns.append(self._taken(kwargs["input_ids"][:, -1]))
        self._logits = output.logits[:, -1]

    def log_probs(self, last_tokens: Tensor) -> Tensor:
        """Log-probabilities of all tokens, (B, T), after `generate` has returned.

        Args:
            last_tokens: column T of the responses, (B,).
        """
        columns = self._columns if self.is_complete else [*self._columns, self._taken(last_tokens)]
        return torch.stack(columns, dim=1)

    def _taken(self, tokens: Tensor) -> Tensor:
        assert self._logits is not None, "generate() ran no forward pass"
        logits = self._logits.float() / self.temperature
        chosen = logits.logsumexp(-1)
        # A shared prompt has one row of logits for all its rollouts.
        repeats = len(tokens) // len(logits)
        owners = torch.arange(len(tokens), device=tokens.device) // repeats
        return logits[owners, tokens] - chosen[owners]


@contextmanager
def record_sampled(model: nn.Module, temperature: float) -> Iterator[SampledLogProbs]:
    """Record the tokens that `model.generate` samples inside the block.

    Args:
        model: a decoder-only model of transformers, wrapped or not.
        temperature: sampling temperature; the logits are divided by it.

    Raises:
        ValueError: no part of `model` generates.
    """
    recorder = SampledLogProbs(temperature)
    handle = generator_of(model).register_forward_hook(recorder.observe, with_kwargs=True)
    try:
        yield recorder
    finally:
        handle.remove()


class SampledSimilarity:
    """Collects the visual similarity of sampled tokens.

    Args:
        visual_mask: the visual tokens of each prompt that `generate` is called with, bool (n, P).
        log_probs: log-probabilities to record at the same time.

    Attributes:
        columns: similarity of the last prompt token, then of the response, (B, 1 + T), after `generate` has returned.
        None if it sampled a single token, read the prompt in parts, or used a mask other than a padding mask.
    """

    def __init__(self, visual_mask: Tensor, log_probs: SampledLogProbs) -> None:
        self.visual_mask = visual_mask
        self.log_probs = log_probs
        self.step: dict[str, Any] = {}  # the arguments of the last forward pass
        self._prototype: Tensor | None = None  # (n, D)
        self._first: Tensor | None = None  # of the last prompt tokens, (n, 1)
        self._columns: list[Tensor] = []
        self.columns: Tensor | None = None

    def note_step(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the model that generates."""
        del model, args
        self.step = dict(kwargs)

    @torch.no_grad()
    def observe(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of its decoder."""
        del decoder, args
        hidden = last_hidden_state(output)  # (n, P, D), then (B, 1, D)
        if hidden.shape[:2] == self.visual_mask.shape and self._prototype is None:
            self._prototype = visual_prototype(hidden, self.visual_mask)
            self._first = visual_similarity(hidden[:, -1:], self._prototype)
        elif hidden.shape[1] == 1 and self._prototype is not None:
            prototype = self._prototype.repeat_interleave(len(hidden) // len(self._prototype), dim=0)
            self._columns.append(visual_similarity(hidden, prototype))

    @torch.no_grad()
    def finish(self, generator: nn.Module, last_tokens: Tensor) -> None:
        """Read the last tokens of all responses, (B,)."""
        mask = self.step.get("attention_mask")  # transformers omits it if no prompt is padded
        if self._columns and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
            generator(**next_step(self.step, last_tokens))
            assert self._first is not None
            first = self._first.repeat_interleave(len(last_tokens) // len(self._first), dim=0)
            self.columns = torch.cat([first, *self._columns], dim=1)
            self.log_probs.is_complete = True
        self.step = {}  # has the cache


def next_step(step: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """Arguments of the forward pass that follows one over one token per row.

    Args:
        step: arguments of the pass before.
        tokens: the next tokens, (B,).
    """
    moved = {name: step[name] + 1 for name in _POSITIONS if step.get(name) is not None}
    if (mask := step.get("attention_mask")) is not None:
        moved["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return {**step, **moved, "input_ids": tokens[:, None]}


@contextmanager
def record_sampled_similarity(
    model: nn.Module, visual_mask: Tensor, log_probs: SampledLogProbs
) -> Iterator[SampledSimilarity]:
    """Record the visual similarity of the tokens that one call of `model.generate` samples inside the block.

    Args:
        model: a vision-language model of transformers, wrapped or not.
        visual_mask: see `SampledSimilarity`.
        log_probs: see `SampledSimilarity`.

    Raises:
        ValueError: no part of `model` generates, or it has no text decoder.
    """
    recorder = SampledSimilarity(visual_mask, log_probs)
    generator = generator_of(model)
    generate = generator.generate

    def generate_and_finish(*args: Any, **kwargs: Any) -> Any:
        output = generate(*args, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        recorder.finish(generator, sequences[:, -1])
        return output

    handles = [
        generator.register_forward_pre_hook(recorder.note_step, with_kwargs=True),
        decoder_of(generator).register_forward_hook(recorder.observe),
    ]
    try:
        with generate_replaced(model, generate_and_finish):
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


def mean_gap(scored: Tensor, sampled: Tensor, mask: Tensor) -> Ratio:
    """Mean absolute difference of log-probabilities over tokens, in nats; all (B, T)."""
    return Ratio(((scored.detach() - sampled).abs() * mask).sum(), mask.sum())
