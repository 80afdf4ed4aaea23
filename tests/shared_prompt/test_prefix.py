"""Prompts that stay open over several passes: when they are read and closed, and what their gradients add up to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from vgpo.shared_prompt import OpenPrompts, Prefix, last_uses, sharing_pattern


@dataclass(eq=False)
class Prompt:
    token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])


def prefix_of(prompt: Prompt, dtype: torch.dtype = torch.float32) -> Prefix:
    """Of two layers, whose states are a function of a weight."""
    weight = torch.ones(1, 1, 2, 1, dtype=dtype, requires_grad=True)
    states = [(weight * 2, weight * 3), (weight * 4, weight * 5)]
    prefix = Prefix(prompt, states, torch.tensor(2), {})
    prefix.weight = weight
    return prefix


class Reader:
    """Notes which prompts are read together."""

    def __init__(self) -> None:
        self.calls: list[list[Prompt]] = []

    def __call__(self, prompts: list[Prompt]) -> list[Prefix]:
        self.calls.append(prompts)
        return [prefix_of(prompt) for prompt in prompts]


def test_a_prompt_is_read_once_and_closed_after_its_last_pass() -> None:
    a, b = Prompt(), Prompt()  # equal, and not the same
    passes = [[a, a], [a, b], [b]]
    opened, read = OpenPrompts(), Reader()
    found = []
    for number, prompts in enumerate(passes):
        found.append(opened.take(prompts, last_uses(passes[number:]), read))
    assert read.calls == [[a], [b]]
    assert found[0][0] is found[0][1] is found[1][0]
    assert found[1][1] is found[2][0]
    assert len(opened) == 0
    opened.check_closed()


def test_prompts_that_are_closed_by_unlike_passes_are_read_apart() -> None:
    """A graph runs backward once."""
    a, b, c = Prompt(), Prompt(), Prompt()
    passes = [[a, b, c], [b], [c]]
    read = Reader()
    OpenPrompts().take(passes[0], last_uses(passes), read)
    assert read.calls == [[a], [b], [c]]
    read = Reader()
    OpenPrompts().take(passes[0], last_uses(passes[:1]), read)
    assert read.calls == [[a, b, c]]


def test_what_is_left_open_is_an_error() -> None:
    a = Prompt()
    opened = OpenPrompts()
    opened.take([a], last_uses([[a], [a]]), Reader())
    with pytest.raises(RuntimeError, match="1 shared prompts still wait for a micro-batch and 0 gradients"):
        opened.check_closed()


@pytest.mark.parametrize("num_earlier", [0, 1, 3])
def test_the_last_pass_takes_along_what_earlier_ones_have_added_up(num_earlier: int) -> None:
    prefix = prefix_of(Prompt())
    for scale in range(1, 1 + num_earlier):
        sum((scale * state.square()).sum() for states in prefix.detached() for state in states).backward()
        assert prefix.weight.grad is None
    sum(state.square().sum() for states in prefix.attached(set()) for state in states).backward()
    # d/dw sum (c w)^2 = 2 c^2 w, for c of 2, 3, 4, 5.
    expected = (1 + sum(range(1, 1 + num_earlier))) * 2 * (4 + 9 + 16 + 25)
    assert prefix.weight.grad.flatten().tolist() == [expected] * 2


def test_gradients_that_no_backward_pass_takes_along_are_an_error() -> None:
    a, opened = Prompt(), OpenPrompts()
    for number, last_use in enumerate(({id(a): 1}, {id(a): 0})):
        [prefix] = opened.take([a], last_use, lambda prompts: [prefix_of(prompts[0])])
        states = opened.states_of(prefix, detached=number == 0)
        if number == 0:
            states[0][0].sum().backward()
    assert len(opened) == 0
    with pytest.raises(RuntimeError, match="0 shared prompts still wait for a micro-batch and 1 gradients"):
        opened.check_closed()
    states[0][0].sum().backward()
    opened.check_closed()


def test_a_later_step_does_not_add_the_gradients_of_an_earlier_one() -> None:
    prefix = prefix_of(Prompt())
    prefix.detached()[0][0].sum().backward()
    prefix.attached(set())[0][0].sum().backward(retain_graph=True)
    assert prefix._leaves is None


def test_gradients_of_half_precision_add_up_in_float32() -> None:
    """Of 256 additions of 1 + 2^-7 to a bfloat16, most are lost."""
    prefix = prefix_of(Prompt(), torch.bfloat16)
    for _ in range(256):
        state = prefix.detached()[0][0]
        assert state.dtype == torch.float32
        (state.bfloat16() * 1.0078125).sum().backward()
    assert prefix.detached()[0][0].grad.flatten().tolist() == [258.0] * 2
    attached = prefix.attached(set())[0][0]
    attached.sum().backward()
    assert prefix.weight.grad.dtype == torch.bfloat16
    assert prefix.weight.grad.flatten().tolist() == [2 * 260.0] * 2  # of 259, the nearest bfloat16


def test_states_without_a_gradient_stay_without_one() -> None:
    with torch.no_grad():
        prefix = prefix_of(Prompt())
    assert not any(state.requires_grad for states in prefix.detached() for state in states)
    assert prefix.attached(set()) is prefix.states


def test_processes_with_equal_groups_have_equal_patterns() -> None:
    a, b, c = Prompt(), Prompt(), Prompt([1])
    assert sharing_pattern([a, a, b, b], lambda prompt: True) == sharing_pattern([b, b, a, a], lambda prompt: True)
    assert sharing_pattern([a, b, a, c], lambda prompt: len(prompt.token_ids) > 1) == [0, 1, 0, -1]
    assert sharing_pattern([a, a, b, b], lambda prompt: True) != sharing_pattern([a, a, a, b], lambda prompt: True)
