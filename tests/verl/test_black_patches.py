"""Images with black patches, in the micro-batches of verl's engine."""

import torch
from tensordict import NonTensorStack, TensorDict

from vgpo.policy.ablation import BlackPatches
from vgpo.verl.engine import with_black_patches

BLACK = torch.tensor([-1.0, -2.0, -3.0])


def micro_batch(uids, pixels):
    inputs = [
        {} if one is None else {"pixel_values": one, "image_grid_thw": torch.tensor([[1, 8, 8]])} for one in pixels
    ]
    fields = {"multi_modal_inputs": NonTensorStack(*inputs), "uid": NonTensorStack(*uids)}
    return TensorDict(fields, batch_size=len(uids))


def pixels_of(batch):
    rows = [getattr(row, "data", row) for row in batch["multi_modal_inputs"]]
    return [row.get("pixel_values") for row in rows]


def test_rollouts_of_a_prompt_have_the_same_black_patches_and_others_have_their_own():
    images = [torch.ones(64, 12) for _ in range(3)]
    batch = micro_batch(["a", "a", "b"], images)
    first, second, third = pixels_of(with_black_patches(batch, BlackPatches(4, BLACK, seed=1)))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    is_black = (first == BLACK.repeat_interleave(4)).all(1)
    is_kept = (first == 1).all(1)
    assert bool((is_black | is_kept).all())
    assert 16 < int(is_black.sum()) < 48  # half of 64, give or take four standard deviations


def test_the_micro_batch_itself_and_rows_without_an_image_stay():
    batch = micro_batch(["a", "b"], [torch.ones(64, 12), None])
    blackened = pixels_of(with_black_patches(batch, BlackPatches(4, BLACK, seed=1)))
    assert blackened[1] is None
    assert bool((pixels_of(batch)[0] == 1).all())


def test_another_seed_draws_other_patches():
    batch = micro_batch(["a"], [torch.ones(64, 12)])
    drawn = [pixels_of(with_black_patches(batch, BlackPatches(4, BLACK, seed=seed)))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
