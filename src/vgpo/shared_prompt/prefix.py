"""Prompts that are read once, and what their responses need of them, across the passes of an optimizer step.

A pass reads prompts without their last token. What it leaves in each decoder layer becomes the prefix of passes over
[last prompt token + response], in micro-batches of any size. Passes that are followed by others with the same prompt
attend to detached copies, in which gradients add up. The last pass attends to the states themselves: its backward
pass takes the sums along, and goes on through the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vgpo.shared_prompt.layers import States


class Prompt(Protocol):
    """What is shared; prompts are told apart by identity."""

    @property
    def token_ids(self) -> list[int]: ...


# Reads prompts and gives the prefix of each.
Read = Callable[[list[Any]], list["Prefix"]]


@dataclass(eq=False)
class Prefix:
    """What a pass over a prompt has left for its responses.

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
        """The states for a pass that others follow, with a gradient of its own; float32, in which gradients add up."""
        if self._leaves is None:
            self._leaves = [
                tuple(state.detach().float().requires_grad_(state.requires_grad) for state in states)
                for states in self.states
            ]
        return self._leaves

    def attached(self) -> list[States]:
        """The states for the last pass: its backward pass takes along what gradients of earlier ones have added up."""
        leaves, self._leaves = self._leaves, None
        if leaves is None:
            return self.states
        for states, copies in zip(self.states, leaves, strict=True):
            for state, leaf in zip(states, copies, strict=True):
                if state.requires_grad:
                    state.register_hook(_adding(leaf))
        return self.states


def _adding(leaf: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that adds the gradient of `leaf`."""

    def add(gradient: Tensor) -> Tensor:
        if leaf.grad is None:
            return gradient
        return (gradient + leaf.grad).to(gradient.dtype)

    return add


class OpenPrompts:
    """Prompts that have been read, until the last pass that needs them."""

    def __init__(self) -> None:
        self._open: dict[int, Prefix] = {}  # by the identity of the prompt, which its prefix keeps alive

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

    def check_closed(self) -> None:
        """Nothing is left open at the end of an optimizer step.

        Raises:
            RuntimeError: a prompt is: its gradient would be lost.
        """
        if self._open:
            raise RuntimeError(
                f"{len(self._open)} shared prompts still wait for a micro-batch at the end of an optimizer step, so "
                "their gradients would be lost. Set share_prompt to 'off'."
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
