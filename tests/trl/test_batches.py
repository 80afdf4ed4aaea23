"""Rows of a generation batch are moved, joined and cut without losing or mixing anything."""

import pytest
import torch

from vgpo.trl.batches import align_rows, group_order, join_rows, micro_batches, select_rows


def batch(num_rows, prompt, response, first=0):
    """A Qwen-like batch whose row r holds the number r everywhere."""
    rows = torch.arange(first, first + num_rows)
    grids = torch.tensor([[1, 2, 2 * (1 + int(r) % 2)] for r in rows])
    return {
        "prompt_ids": rows[:, None].repeat(1, prompt),
        "prompt_mask": torch.ones(num_rows, prompt, dtype=torch.long),
        "completion_ids": rows[:, None].repeat(1, response),
        "completion_mask": torch.ones(num_rows, response, dtype=torch.long),
        "mm_token_type_ids": rows[:, None].repeat(1, prompt + response),
        "advantages": rows.float(),
        "num_items_in_batch": torch.tensor(num_rows * response),
        "pixel_values": rows.repeat_interleave(grids.prod(-1))[:, None].float(),
        "image_grid_thw": grids,
        "num_images": [1] * num_rows,
    }


def test_cutting_an_untouched_batch_gives_its_rows_back():
    whole = batch(4, 3, 2)
    parts = micro_batches(align_rows(whole), 2)
    for name in ("prompt_ids", "pixel_values", "image_grid_thw", "advantages"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_selected_rows_keep_their_own_pixels():
    part = micro_batches(select_rows(align_rows(batch(4, 3, 2)), [3, 1]), 1)[0]
    assert part["prompt_ids"][:, 0].tolist() == [3, 1]
    assert part["pixel_values"][:, 0].tolist() == [3.0] * 8 + [1.0] * 8
    assert part["image_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 4]]


def test_joined_batches_are_padded_on_the_right_sides():
    pad = 99
    joined = join_rows([align_rows(batch(2, 3, 2)), align_rows(batch(2, 4, 5, first=2))], pad)
    assert joined["prompt_ids"][0].tolist() == [pad, 0, 0, 0]
    assert joined["prompt_mask"][0].tolist() == [0, 1, 1, 1]
    assert joined["completion_ids"][1].tolist() == [1, 1, pad, pad, pad]
    assert joined["completion_mask"][1].tolist() == [1, 1, 0, 0, 0]
    assert joined["mm_token_type_ids"][1].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert joined["mm_token_type_ids"][3].tolist() == [3] * 9
    assert micro_batches(joined, 1)[0]["pixel_values"].shape[0] == 4 + 8 + 4 + 8


def test_a_shuffle_by_blocks_keeps_neighbours_together():
    torch.manual_seed(0)
    order = group_order(24, 4)
    assert sorted(order) == list(range(24))
    assert order != list(range(24))
    for start in range(0, 24, 4):
        block = order[start : start + 4]
        assert block == list(range(block[0], block[0] + 4))
        assert block[0] % 4 == 0


@pytest.mark.parametrize("pictures_first", [True, False])
def test_rows_without_pictures_join_rows_with_them(pictures_first):
    """A round that was all text-only has no picture fields: nothing of the other round may be lost for it."""
    pictured = align_rows(batch(2, 3, 2))
    fields = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    text_only = {name: value for name, value in align_rows(batch(2, 4, 5, first=2)).items() if name not in fields}
    rounds = [pictured, text_only] if pictures_first else [text_only, pictured]
    joined = join_rows(rounds, pad_token_id=99)
    order = [0, 1, 2, 3] if pictures_first else [2, 3, 0, 1]
    assert joined["advantages"].tolist() == order
    assert joined["num_images"] == [int(row < 2) for row in order]
    assert [len(pixels) for pixels in joined["pixel_values"]] == [(4, 8, 0, 0)[row] for row in order]
    assert joined["mm_token_type_ids"].shape == (4, 4 + 5)
    assert not joined["mm_token_type_ids"][[order.index(2), order.index(3)]].any()
    whole = micro_batches(joined, 1)[0]
    assert sorted(whole["pixel_values"][:, 0].tolist()) == [0.0] * 4 + [1.0] * 8


def test_a_round_that_kept_nothing_adds_nothing():
    kept, nothing = align_rows(batch(2, 3, 2)), select_rows(align_rows(batch(2, 9, 9)), [])
    joined = join_rows([nothing, kept], pad_token_id=99)
    assert joined["prompt_ids"].shape == (2, 3)
    assert joined["completion_ids"].shape == (2, 2)
