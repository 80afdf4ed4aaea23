"""Similarity of packed sequences is that of each sequence alone, in any order and spread over any processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpo.equations import visual_prototype, visual_similarity
from vgpo.focus import ragged_similarity

SIZE = 24
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**31 - 1)


def packing(lengths, seed, dtype=torch.float32):
    """States, numbers of sequences and visual tokens of sequences one after another."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = torch.randn(len(sequence), SIZE, generator=generator).to(dtype) * 3 + 0.5
    visual = torch.rand(len(sequence), generator=generator) < 0.4
    return hidden, sequence, visual


def one_by_one(hidden, sequence, visual, num_sequences):
    """Each sequence through the equations of a padded batch of one row."""
    similarity = torch.zeros(len(hidden))
    for number in range(num_sequences):
        own = sequence == number
        if own.any():
            row = hidden[own][None]
            similarity[own] = visual_similarity(row, visual_prototype(row, visual[own][None]))[0].float()
    return similarity


def by_hand(hidden, sequence, visual, num_sequences):
    """Token by token, in float64."""
    similarity = torch.zeros(len(hidden))
    states = hidden.double()
    for i, number in enumerate(sequence.tolist()):
        seen = [states[k] for k in range(len(states)) if sequence[k] == number and visual[k]]
        if seen and 0 <= number < num_sequences:
            mean = sum(seen) / len(seen)
            similarity[i] = states[i] @ mean / (states[i].norm() * mean.norm() + 1e-8)
    return similarity


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SEEDS)
def test_every_sequence_has_the_similarity_that_it_has_alone(lengths, seed):
    batch = packing(lengths, seed)
    found = ragged_similarity(*batch, len(lengths))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, one_by_one(*batch, len(lengths)), rtol=0, atol=1e-6)
    torch.testing.assert_close(found, by_hand(*batch, len(lengths)), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, SEEDS)
def test_the_order_of_tokens_changes_nothing(lengths, seed):
    hidden, sequence, visual = packing(lengths, seed)
    order = torch.randperm(len(sequence), generator=torch.Generator().manual_seed(seed))
    found = ragged_similarity(hidden[order], sequence[order], visual[order], len(lengths))
    expected = ragged_similarity(hidden, sequence, visual, len(lengths))[order]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, SEEDS, st.integers(1, 4))
def test_processes_that_hold_parts_of_the_sequences_find_what_one_finds(lengths, seed, num_processes):
    batch = packing(lengths, seed)
    parts = list(zip(*(tensor.tensor_split(num_processes) for tensor in batch), strict=True))
    partial = []
    for part in parts:
        ragged_similarity(*part, len(lengths), all_reduce=lambda tensor: partial.append(tensor.clone()) or tensor)
    assert [tuple(tensor.shape) for tensor in partial] == [(len(lengths), SIZE + 1)] * num_processes
    total = sum(partial)
    for part, expected in zip(parts, ragged_similarity(*batch, len(lengths)).tensor_split(num_processes), strict=True):
        in_place = ragged_similarity(*part, len(lengths), all_reduce=lambda tensor: tensor.copy_(total))
        returned = ragged_similarity(*part, len(lengths), all_reduce=lambda tensor: total)
        torch.testing.assert_close(in_place, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(returned, expected, rtol=0, atol=1e-6)


def test_padding_is_zero_and_counts_nowhere_whatever_it_holds():
    hidden, sequence, visual = packing([5, 6, 4], seed=1)
    visual[[0, 5, 11]] = True
    expected = ragged_similarity(hidden, sequence, visual, 3)
    for mark in (-1, 3, 2**40, -(2**40)):
        padded = ragged_similarity(
            torch.cat([hidden, torch.full((2, SIZE), torch.nan), torch.ones(1, SIZE)]),
            torch.cat([sequence, torch.full((3,), mark)]),
            torch.cat([visual, torch.tensor([True, False, True])]),
            3,
        )
        assert torch.equal(padded, torch.cat([expected, torch.zeros(3)]))


def test_a_sequence_without_a_visual_token_is_zero_and_disturbs_no_other():
    hidden, sequence, visual = packing([5, 6, 4], seed=2)
    visual[:] = False
    visual[[1, 12]] = True
    similarity = ragged_similarity(hidden, sequence, visual, 3)
    assert (similarity[5:11] == 0).all()
    assert similarity[[1, 12]].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (similarity[[0, 2, 11, 14]] != 0).all()


def test_states_that_are_not_visual_may_be_nan_where_they_stand():
    hidden, sequence, visual = packing([4, 4], seed=3)
    visual[:] = torch.tensor([True, True, False, False] * 2)
    expected = ragged_similarity(hidden, sequence, visual, 2)
    hidden[3] = torch.nan
    found = ragged_similarity(hidden, sequence, visual, 2)
    assert found.isnan().nonzero().flatten().tolist() == [3]
    assert torch.equal(found[[0, 1, 2, 4, 5, 6, 7]], expected[[0, 1, 2, 4, 5, 6, 7]])


def test_zero_states_have_similarity_zero():
    hidden, sequence, visual = packing([3, 3], seed=4)
    visual[:] = torch.tensor([True, False, False, True, True, False])
    hidden[2] = 0  # a token
    hidden[3], hidden[4] = 1.0, -1.0  # a prototype
    similarity = ragged_similarity(hidden, sequence, visual, 2)
    assert similarity[2:].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(similarity, one_by_one(hidden, sequence, visual, 2), rtol=0, atol=1e-6)


def test_states_near_zero_are_damped_as_in_the_equations():
    hidden, sequence, visual = packing([7, 5, 9], seed=11)
    batch = hidden * 1e-5, sequence, visual
    found = ragged_similarity(*batch, 3)
    assert found[visual].max() < 0.6  # without damping, the largest is 0.8
    torch.testing.assert_close(found, one_by_one(*batch, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision_are_computed_in_float32(dtype):
    batch = packing([7, 1, 9], seed=5, dtype=dtype)
    similarity = ragged_similarity(*batch, 3)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, by_hand(*batch, 3), rtol=0, atol=1e-6)


def test_autocast_does_not_round_it():
    batch = packing([7, 1, 9], seed=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = ragged_similarity(*batch, 3)
    assert torch.equal(similarity, ragged_similarity(*batch, 3))


def test_blocks_of_tokens_leave_no_seam(monkeypatch):
    batch = packing([7, 1, 9], seed=7)
    expected = ragged_similarity(*batch, 3)
    monkeypatch.setattr("vgpo.focus.ragged._BLOCK_ELEMENTS", 4 * SIZE)
    torch.testing.assert_close(ragged_similarity(*batch, 3), expected, rtol=0, atol=1e-6)


def test_it_reads_no_value_on_the_host():
    hidden, sequence, visual = (tensor.to("meta") for tensor in packing([7, 1, 9], seed=8))
    assert ragged_similarity(hidden, sequence, visual, 3).shape == (17,)


def test_no_gradient_flows_through_it():
    hidden, sequence, visual = packing([7, 1, 9], seed=9)
    assert not ragged_similarity(hidden.requires_grad_(), sequence, visual, 3).requires_grad


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("hidden", lambda h, s, v: (h[None], s, v), r"shape \(1, 5, 24\)"),
        ("hidden", lambda h, s, v: (h.long(), s, v), r"dtype torch.int64"),
        ("sequence", lambda h, s, v: (h, s[:-1], v), r"shape \(4,\)"),
        ("sequence", lambda h, s, v: (h, s.int(), v), r"dtype torch.int32"),
        ("visual", lambda h, s, v: (h, s, v[None]), r"shape \(1, 5\)"),
        ("visual", lambda h, s, v: (h, s, v.long()), r"dtype torch.int64"),
    ],
)
def test_a_wrong_shape_or_dtype_is_named(name, change, found):
    with pytest.raises(ValueError, match=rf"^{name} has .*{found}.*expected"):
        ragged_similarity(*change(*packing([2, 3], seed=10)), 2)
