"""Rows of a generation batch are moved, joined and cut without losing or mixing anything."""

import torch

from vgpo.training.batches import group_order, join_rows, select_rows


def batch(num_rows, prompt, response, first=0):
    """A batch whose row r holds the number r everywhere."""
    rows = torch.arange(first, first + num_rows)
    return {
        "prompt_ids": rows[:, None].repeat(1, prompt),
        "prompt_mask": torch.ones(num_rows, prompt, dtype=torch.long),
        "completion_ids": rows[:, None].repeat(1, response),
        "completion_mask": torch.ones(num_rows, response, dtype=torch.long),
        "advantages": rows.float(),
        "num_items_in_batch": torch.tensor(num_rows * response),
        "prompts": rows.tolist(),
    }


def test_selected_rows_keep_all_that_is_theirs():
    part = select_rows(batch(4, 3, 2), [3, 1])
    assert part["prompt_ids"][:, 0].tolist() == part["prompts"] == part["advantages"].tolist() == [3, 1]
    assert part["num_items_in_batch"] == 8


def test_joined_batches_are_padded_on_the_right_sides():
    pad = 99
    joined = join_rows([batch(2, 3, 2), batch(2, 4, 5, first=2)], pad)
    assert joined["prompt_ids"][0].tolist() == [pad, 0, 0, 0]
    assert joined["prompt_mask"][0].tolist() == [0, 1, 1, 1]
    assert joined["completion_ids"][1].tolist() == [1, 1, pad, pad, pad]
    assert joined["completion_mask"][1].tolist() == [1, 1, 0, 0, 0]
    assert joined["prompts"] == joined["advantages"].tolist() == [0, 1, 2, 3]


def test_a_shuffle_by_blocks_keeps_neighbours_together():
    torch.manual_seed(0)
    order = group_order(24, 4)
    assert sorted(order) == list(range(24))
    assert order != list(range(24))
    for start in range(0, 24, 4):
        block = order[start : start + 4]
        assert block == list(range(block[0], block[0] + 4))
        assert block[0] % 4 == 0


def test_a_round_that_kept_nothing_adds_nothing():
    kept, nothing = batch(2, 3, 2), select_rows(batch(2, 9, 9), [])
    joined = join_rows([nothing, kept], pad_token_id=99)
    assert joined["prompt_ids"].shape == (2, 3)
    assert joined["completion_ids"].shape == (2, 2)
