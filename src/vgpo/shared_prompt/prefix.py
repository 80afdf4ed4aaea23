"""Prompts that are computed once, and their states for the responses, across the passes of an optimizer step.

A pass reads prompts without their last token. What it leaves in each decoder layer becomes the prefix of passes over
[last prompt token + response], in micro-batches of any size. Passes that are followed by others with the same prompt
attend to detached copies, in which gradients add up. The last pass attends to the states themselves: its backward pass
adds these sums, and continues through the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vgpo.shared_prompt.layers import States


class Prompt(Protocol):
    """A shared prompt; two prompts are the same if they are one object."""

    @property
    def token_ids(self) -> list[int]: ...


# Reads prompts and gives the prefix of each.
Read = Callable[[list[Any]], list["Prefix"]]


@dataclass(eq=False)
class Prefix:
    """The states of a prompt for its responses.

    Args:
        prompt: without its last token it is in the states.
        states: of each decoder layer, (1, ...) each.
        position: the position id of the next token, ().
        visual_means: what similarity is measured with, by the name of the measure; (layers, D) each.
        anchor: an output of the pass of a sharded model: a loss that depends on it runs backward through all layers.
    """

    prompt: Prompt
    states: list[States]
    position: Tensor
    visual_means: dict[str, Tensor]
    anchor: Tensor | None = None
    _leaves: list[States] | None = field(default=None, init=False)

    @property
    def length(self) -> int:
        """Tokens in the states."""
        return len(self.prompt.token_ids) - 1

    def detached(self) -> list[States]:
        """The states for a pass that others follow, with gradients of their own, which add up in float32 or better."""
        if self._leaves is None:
            self._leaves = [tuple(map(_leaf_of, states)) for states in self.states]
        return self._leaves

    def attached(self, waiting: set[int]) -> list[States]:
        """The states for the last pass: its backward pass takes along what gradients of earlier ones have added up.

        Args:
            waiting: gets the identity of each gradient that is still to be taken along.
        """
        leaves, self._leaves = self._leaves, None
        if leaves is None:
            return self.states
        for states, copies in zip(self.states, leaves, strict=True):
            for state, leaf in zip(states, copies, strict=True):
                if leaf.grad is not None:
                    waiting.add(id(leaf.grad))
                    state.register_hook(_adding(leaf.grad, waiting))
        return self.states


def _leaf_of(state: Tensor) -> Tensor:
    dtype = torch.promote_types(state.dtype, torch.float32)
    return state.detach().to(dtype).requires_grad_(state.requires_grad)


def _adding(sum_of_gradients: Tensor, waiting: set[int]) -> Callable[[Tensor], Tensor]:
    """A hook that adds what earlier passes have added up."""

    def add(gradient: Tensor) -> Tensor:
        waiting.discard(id(sum_of_gradients))
        return (gradient + sum_of_gradients).to(gradient.dtype)

    return add


class OpenPrompts:
    """Prompts that have been read, until the last pass that needs them."""

    def __init__(self) -> None:
        self._open: dict[int, Prefix] = {}  # by the identity of the prompt, which its prefix keeps alive
        self._waiting: set[int] = set()  # see `Prefix.attached`

    def __len__(self) -> int:
        return len(self._open)

    def take(self, prompts: Sequence[Prompt], last_use: Mapping[int, int], read: Read) -> list[Prefix]:
        """The prefix of each prompt, read now unless it is open; those that no later pass needs are closed.

        Args:
            prompts: of the rows of a pass.
            last_use: for each prompt, by its `id`, how many passes later it is needed for the last time.
            read: called with prompts that are needed for the last time by the same pass: a graph runs backward once.
        """
        unique = {id(prompt): prompt for prompt in prompts}
        missing: dict[int, list[Any]] = {}
        for key, prompt in unique.items():
            if key not in self._open:
                missing.setdefault(last_use.get(key, 0), []).append(prompt)
        for together in missing.values():
            for prefix in read(together):
                self._open[id(prefix.prompt)] = prefix
        found = {key: self._open[key] for key in unique}
        for key in unique:
            if not last_use.get(key, 0):
                del self._open[key]
        return [found[id(prompt)] for prompt in prompts]

    def states_of(self, prefix: Prefix, *, detached: bool) -> list[States]:
        """The states of a prefix for a pass, see `Prefix`."""
        return prefix.detached() if detached else prefix.attached(self._waiting)

    def check_closed(self) -> None:
        """Check that nothing is left open at the end of an optimizer step, after its last backward pass.

        Raises:
            RuntimeError: a prompt is still open, or gradients of earlier passes were not propagated: they would be
            lost.
        """
        if self._open or self._waiting:
            raise RuntimeError(
                f"At the end of an optimizer step, {len(self._open)} shared prompts still wait for a micro-batch and "
                f"{len(self._waiting)} gradients for a backward pass, which would be lost. Set share_prompt to 'off'."
            )


def sharing_pattern(prompts: Sequence[Prompt], can_share: Callable[[Any], bool]) -> list[int]:
    """For each row, the first row with the same prompt, or -1 if its prompt is not shared.

    Processes with equal patterns run the same passes.
    """
    first: dict[int, int] = {}
    return [first.setdefault(id(prompt), row) if can_share(prompt) else -1 for row, prompt in enumerate(prompts)]


def last_uses(passes: Sequence[Sequence[Prompt]]) -> dict[int, int]:
    """For each prompt, by its `id`, the number of the last pass that has it.

    Args:
        passes: the prompts of each pass, in order; the first is number 0.
    """
    return {id(prompt): number for number, prompts in enumerate(passes) for prompt in prompts}
