"""Cache layers that keep the graph: what they record, what they hand on, and that a second call changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Cache

from vgpo.shared_prompt.layers import (
    PromptLayer,
    PromptStateLayer,
    ResponseLayer,
    ResponseStateLayer,
    check_all_read,
    layer_kinds,
    prompt_cache,
    response_cache,
    rows_of,
    states_of_prompts,
)

CONFIG: Any = SimpleNamespace(layer_types=["full_attention", "linear_attention"], num_hidden_layers=2)
LENGTHS = [5, 3]  # of two prompts, padded on the left


def filled(cache: Cache) -> tuple[torch.Tensor, ...]:
    """Keys, values, convolution input and recurrent state of a pass over both prompts."""
    keys, values, conv, recurrent = (
        torch.randn(shape, requires_grad=True) for shape in ((2, 1, 5, 4), (2, 1, 5, 4), (2, 6, 5), (2, 3, 2))
    )
    assert cache.update(keys, values, 0)[0] is keys
    assert torch.equal(cache.update_conv_state(conv, 1, conv_kernel_size=4), conv)
    assert cache.update_recurrent_state(recurrent, 1) is recurrent
    return keys, values, conv, recurrent


def test_prompts_get_the_states_that_they_left() -> None:
    cache = prompt_cache(CONFIG)
    keys, values, conv, recurrent = filled(cache)
    check_all_read(cache)
    for number, states in enumerate(states_of_prompts(cache, LENGTHS)):
        one, length = slice(number, number + 1), LENGTHS[number]
        assert torch.equal(states[0][0], keys[one, :, 5 - length :])
        assert torch.equal(states[0][1], values[one, :, 5 - length :])
        assert torch.equal(states[1][0], conv[one, :, -4:])
        assert torch.equal(states[1][1], recurrent[one])


def test_a_second_call_records_nothing() -> None:
    """Gradient checkpointing calls a layer again."""
    cache = prompt_cache(CONFIG)
    first = filled(cache)
    filled(cache)
    [states, _] = states_of_prompts(cache, LENGTHS)
    assert torch.equal(states[0][0], first[0][:1])
    assert torch.equal(states[1][1], first[3][:1])


def test_a_short_convolution_input_is_padded_on_the_left() -> None:
    layer = PromptStateLayer()
    found = layer.update_conv_state(torch.ones(1, 2, 3), conv_kernel_size=4)
    assert found[0, 0].tolist() == [0, 1, 1, 1]


def test_responses_go_on_from_their_prompts() -> None:
    prompts = prompt_cache(CONFIG)
    filled(prompts)
    states = states_of_prompts(prompts, LENGTHS)
    owners = [1, 0, 1]
    cache = response_cache(CONFIG, states, owners, max(LENGTHS))
    assert cache.get_seq_length() == 5
    assert cache.get_mask_sizes(2, 0) == (7, 0)
    own = torch.randn(3, 1, 2, 4)
    for _ in range(2):  # a second call changes nothing
        keys, values = cache.update(own, own, 0)
        assert keys.shape == values.shape == (3, 1, 7, 4)
        for row, owner in enumerate(owners):
            assert torch.equal(keys[row, :, 5 - LENGTHS[owner] : 5], states[owner][0][0][0])
            assert torch.equal(keys[row, :, 5:], own[row])
        assert keys[0, :, :2].eq(0).all()  # padding, which the mask leaves out
        assert torch.equal(cache.get_conv_state(1), torch.cat([states[owner][1][0] for owner in owners]))
        assert torch.equal(cache.get_recurrent_state(1), torch.cat([states[owner][1][1] for owner in owners]))
        inputs = torch.randn(3, 6, 1)
        assert torch.equal(
            cache.update_conv_state(inputs, 1, conv_kernel_size=4), torch.cat([cache.get_conv_state(1), inputs], -1)
        )
        cache.update_recurrent_state(torch.zeros(3, 3, 2), 1)
    assert cache.is_recording_past(1)  # else rows of one token are written in place
    check_all_read(cache)


def test_gradients_reach_the_states_of_the_prompt() -> None:
    keys = torch.randn(1, 1, 3, 2, requires_grad=True)
    layer = ResponseLayer([(keys, keys)], [0, 0], 3)
    own = torch.randn(2, 1, 1, 2)
    layer.update(own, own)[0].sum().backward()
    assert keys.grad.eq(2).all()  # two rows


def test_states_take_the_precision_of_the_layer() -> None:
    leaf = torch.randn(1, 1, 3, 2)
    own = torch.randn(1, 1, 1, 2, dtype=torch.bfloat16)
    assert ResponseLayer([(leaf, leaf)], [0], 3).update(own, own)[0].dtype == torch.bfloat16


def test_rows_of_one_prompt_are_no_copies() -> None:
    state = torch.randn(1, 2, 3)
    assert rows_of([state], [0, 0, 0]).untyped_storage().data_ptr() == state.untyped_storage().data_ptr()


def test_a_layer_that_was_not_read_is_an_error() -> None:
    cache = prompt_cache(CONFIG)
    cache.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0)
    with pytest.raises(RuntimeError, match=r"Decoder layers \[1\] did not read the cache"):
        check_all_read(cache)


def test_kinds_of_layers() -> None:
    assert layer_kinds(SimpleNamespace(layer_types=None, num_hidden_layers=3)) == ["full_attention"] * 3
    kinds = [type(layer) for layer in prompt_cache(CONFIG).layers]
    assert kinds == [PromptLayer, PromptStateLayer]
    states = [(torch.ones(1, 1, 1, 1),) * 2, (torch.ones(1, 1, 1),) * 2, (torch.ones(1),)]  # and one that is left out
    assert [type(layer) for layer in response_cache(CONFIG, [states], [0], 1).layers] == [
        ResponseLayer, ResponseStateLayer,
    ]  # fmt: skip
