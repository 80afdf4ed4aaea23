"""What must not change the factors, and what must switch them off exactly."""

from dataclasses import fields

import pytest
import torch

from vgpo import (
    ReweightedAdvantages,
    VGPOSettings,
    reweight_advantages,
    visual_prototype,
    visual_similarity,
)
from vgpo.equations import compensated_weight

NAN = float("nan")
PAPER = VGPOSettings()


def random_batch(B: int = 12, T: int = 19, num_groups: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Advantages, similarity, mask with holes and padding, group ids; NaN off the mask."""
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(B, generator=generator)
    similarity = torch.rand(B, T, generator=generator) * 2 - 1
    mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=generator)
    mask &= torch.rand(B, T, generator=generator) < 0.8
    group_ids = torch.arange(B) % num_groups * 10**12
    return advantages, torch.where(mask, similarity, NAN), mask, group_ids


def assert_same(found: ReweightedAdvantages, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(vars(found)[name], tensor, atol=1e-6, rtol=0, msg=lambda text, n=name: n + text)


def rows(out: ReweightedAdvantages, index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {field.name: vars(out)[field.name][index] for field in fields(out)}


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_row_order_does_not_matter(preset: str) -> None:
    batch = random_batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    settings = VGPOSettings(preset=preset)
    whole = reweight_advantages(*batch, settings)
    permuted = reweight_advantages(*(tensor[order] for tensor in batch), settings)
    assert_same(permuted, rows(whole, order))


def test_group_names_do_not_matter() -> None:
    advantages, similarity, mask, group_ids = random_batch()
    renamed = -(group_ids // 10**12) * 7 + 3
    whole = reweight_advantages(advantages, similarity, mask, group_ids, PAPER)
    found = reweight_advantages(advantages, similarity, mask, renamed.int(), PAPER)
    assert_same(found, rows(whole, torch.arange(12)))


@pytest.mark.parametrize("row", [0, 5, 11])
def test_batch_mates_do_not_change_a_rows_token_factors(row: int) -> None:
    batch = random_batch()
    whole = reweight_advantages(*batch, PAPER)
    alone = reweight_advantages(*(tensor[row : row + 1] for tensor in batch), PAPER)
    assert torch.equal(alone.gate[0], whole.gate[row])
    torch.testing.assert_close(alone.token_factor[0], whole.token_factor[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[0, 1], [2]], [[2], [0, 1]], [[0, 2], [1]]])
def test_any_split_into_whole_groups_gives_the_same(parts: list[list[int]]) -> None:
    batch = random_batch()
    whole = reweight_advantages(*batch, PAPER)
    for part in parts:
        index = torch.isin(batch[3] // 10**12, torch.tensor(part)).nonzero()[:, 0]
        assert_same(reweight_advantages(*(tensor[index] for tensor in batch), PAPER), rows(whole, index))


def test_padding_does_not_matter() -> None:
    advantages, similarity, mask, group_ids = random_batch()
    padded = torch.cat([torch.full((12, 3), NAN), similarity, torch.full((12, 40), NAN)], dim=1)
    padded_mask = torch.nn.functional.pad(mask, (3, 40))
    whole = reweight_advantages(advantages, similarity, mask, group_ids, PAPER)
    found = reweight_advantages(advantages, padded, padded_mask, group_ids, PAPER)
    for name in ("advantages", "token_factor", "focus", "gate"):
        torch.testing.assert_close(vars(found)[name][:, 3:22], vars(whole)[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.rollout_factor, whole.rollout_factor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("schedule", ["linear", "exponential", "step"])
def test_tokens_that_do_not_count_have_factor_one(preset: str, schedule: str) -> None:
    advantages, similarity, mask, group_ids = random_batch()
    out = reweight_advantages(advantages, similarity, mask, group_ids, VGPOSettings(preset=preset, schedule=schedule))
    assert all(vars(out)[field.name].isfinite().all() for field in fields(out))
    assert out.token_factor[~mask].eq(1).all()
    assert out.focus[~mask].eq(0).all()
    assert not out.gate[~mask].any()
    assert torch.equal(out.advantages[~mask], advantages[:, None].expand_as(mask)[~mask])


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_rows_without_an_image_or_a_token_take_no_part(preset: str) -> None:
    advantages, similarity, mask, group_ids = random_batch()
    settings = VGPOSettings(preset=preset)
    visual_rows = torch.ones(12, dtype=torch.bool)
    visual_rows[[0, 4]] = False
    similarity[[0, 4]] = NAN
    mask[7] = False
    similarity[7] = NAN
    out = reweight_advantages(advantages, similarity, mask, group_ids, settings, visual_rows)
    absent = torch.tensor([0, 4, 7])
    assert out.rollout_factor[absent].eq(1).all()
    assert out.token_factor[absent].eq(1).all()
    assert torch.equal(out.advantages[absent], advantages[absent, None].expand(3, 19))
    present = torch.tensor([1, 2, 3, 5, 6, 8, 9, 10, 11])
    without = reweight_advantages(
        advantages[present], similarity[present], mask[present], group_ids[present], settings
    )
    assert_same(without, rows(out, present))


def test_a_batch_without_any_image_keeps_its_advantages() -> None:
    advantages, similarity, mask, group_ids = random_batch()
    none = torch.zeros(12, dtype=torch.bool)
    out = reweight_advantages(advantages, similarity * NAN, mask, group_ids, PAPER, none)
    assert torch.equal(out.advantages, advantages[:, None].expand(12, 19))


def test_strength_zero_removes_the_compensation() -> None:
    generator = torch.Generator().manual_seed(3)
    focus, growth = torch.rand(2, 9, 30, generator=generator)
    gate = torch.rand(9, 30, generator=generator) < 0.5
    assert torch.equal(compensated_weight(focus, gate, growth, 0), focus)
    assert not torch.equal(compensated_weight(focus, gate, growth, 0.3), focus)
    batch = random_batch()
    one, other = (
        reweight_advantages(*batch, VGPOSettings(strength=0, tail_ratio=tail, gate_ratio=share))
        for tail, share in [(0.5, 0.2), (1, 1)]
    )
    assert not torch.equal(one.gate, other.gate)
    assert torch.equal(one.advantages, other.advantages)


def test_both_ratios_one_compensate_everywhere() -> None:
    advantages, similarity, mask, group_ids = random_batch()
    out = reweight_advantages(advantages, similarity, mask, group_ids, VGPOSettings(tail_ratio=1, gate_ratio=1))
    assert torch.equal(out.gate, mask)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_grains_off_keep_the_advantages_bit_for_bit(preset: str, dtype: torch.dtype) -> None:
    _, similarity, mask, group_ids = random_batch()
    advantages = torch.randn(12, dtype=dtype, generator=torch.Generator().manual_seed(2))
    advantages[:3] = torch.tensor([-0.0, 1e-38, -3e38])
    settings = VGPOSettings(intra=False, inter=False, preset=preset)
    out = reweight_advantages(advantages, similarity.to(dtype), mask, group_ids, settings)
    expected = advantages[:, None].expand(12, 19)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    assert torch.equal(out.advantages.view(integer), expected.contiguous().view(integer))


def test_one_grain_off_leaves_the_other() -> None:
    batch = random_batch()
    both = reweight_advantages(*batch, PAPER)
    tokens = reweight_advantages(*batch, VGPOSettings(inter=False))
    rollouts = reweight_advantages(*batch, VGPOSettings(intra=False))
    assert torch.equal(tokens.token_factor, both.token_factor)
    assert tokens.rollout_factor.eq(1).all()
    assert torch.equal(rollouts.rollout_factor, both.rollout_factor)
    assert rollouts.token_factor.eq(1).all()


def test_psi_is_exactly_zero_where_the_weight_is_constant() -> None:
    similarity = torch.tensor([0.1, 0.7, -0.3])[:, None].expand(3, 23)
    mask = torch.arange(23) < torch.tensor([[23], [9], [1]])
    settings = VGPOSettings(strength=0)
    out = reweight_advantages(torch.ones(3), similarity, mask, torch.arange(3), settings)
    assert out.token_factor.eq(1).all()


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_phi_is_exactly_zero_where_the_scores_are_equal(preset: str) -> None:
    # The same 3,000 cosines in another order and with holes at other places: equal sums up to rounding.
    generator = torch.Generator().manual_seed(4)
    values = torch.rand(3000, generator=generator) * 2 - 1
    similarity, mask = torch.full((8, 4000), NAN), torch.zeros(8, 4000, dtype=torch.bool)
    for row in range(8):
        place = torch.randperm(4000, generator=generator)[:3000]
        similarity[row, place], mask[row, place] = values, True
    settings = VGPOSettings(strength=0, preset=preset)
    sums = torch.where(mask, (similarity + 1) / 2, 0).sum(dim=1)
    assert sums.unique().numel() > 1
    out = reweight_advantages(torch.ones(8), similarity, mask, torch.zeros(8).long(), settings)
    assert out.rollout_factor.eq(1).all()


def test_the_mean_score_does_not_favour_long_responses() -> None:
    # The same cosine at every token: the sum sees length alone, the mean sees nothing.
    similarity, mask = torch.full((2, 8), 0.5), torch.arange(8) < torch.tensor([[3], [8]])
    factors = {}
    for score in ("sum", "mean"):
        settings = VGPOSettings(strength=0, rollout_score=score)
        out = reweight_advantages(torch.ones(2), similarity, mask, torch.zeros(2).long(), settings)
        factors[score] = out.rollout_factor.tolist()
    assert factors == {"sum": [0.5, 1.5], "mean": [1.0, 1.0]}


def test_phi_is_exactly_zero_in_a_group_of_one() -> None:
    advantages, similarity, mask, _ = random_batch()
    out = reweight_advantages(advantages, similarity, mask, torch.arange(12), PAPER)
    assert out.rollout_factor.eq(1).all()


def test_factors_average_one_over_the_tokens_and_over_the_group() -> None:
    advantages, similarity, mask, group_ids = random_batch()
    out = reweight_advantages(advantages, similarity, mask, group_ids, PAPER)
    means = (out.token_factor * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(means, torch.ones(12), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.rollout_factor.view(4, 3).mean(dim=0), torch.ones(3), atol=1e-6, rtol=0)


def test_no_gradient_flows_through_the_factors() -> None:
    hidden = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    visual = torch.tensor([[True, True], [True, False]])
    prototype = visual_prototype(hidden[:, :2], visual)
    similarity = visual_similarity(hidden[:, 2:], prototype)
    leaf = similarity.clone().requires_grad_()
    mask = torch.ones(2, 4, dtype=torch.bool)
    out = reweight_advantages(torch.ones(2), leaf, mask, torch.zeros(2).long(), PAPER)
    tensors = [prototype, similarity, *(vars(out)[field.name] for field in fields(out))]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("schedule", ["linear", "exponential", "step"])
def test_no_value_is_read_on_the_host(preset: str, schedule: str) -> None:
    # A meta tensor has no values: reading one, or a shape that depends on one, raises.
    with torch.device("meta"):
        hidden = torch.empty(4, 9, 16)
        prototype = visual_prototype(hidden[:, :5], torch.empty(4, 5, dtype=torch.bool))
        out = reweight_advantages(
            torch.empty(4),
            visual_similarity(hidden[:, 5:], prototype),
            torch.empty(4, 4, dtype=torch.bool),
            torch.empty(4, dtype=torch.int64),
            VGPOSettings(preset=preset, schedule=schedule),
            torch.empty(4, dtype=torch.bool),
        )
    assert out.advantages.shape == (4, 4)
    assert out.rollout_factor.shape == (4,)


def test_inputs_are_left_as_they_were() -> None:
    batch = random_batch()
    before = [tensor.clone() for tensor in batch]
    reweight_advantages(*batch, PAPER)
    for tensor, copy in zip(batch, before, strict=True):
        torch.testing.assert_close(tensor, copy, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": torch.zeros(4)}, r"similarity has shape \(4,\), expected \(B, T\)\."),
        ({"similarity": torch.zeros(4, 0)}, r"similarity has shape \(4, 0\), expected at least one row and one"),
        ({"advantages": torch.zeros(3)}, r"advantages has shape \(3,\), expected \(B\) = \(4,\)\."),
        ({"advantages": torch.zeros(4, 5)}, r"advantages has shape \(4, 5\), expected \(B\) = \(4,\)\."),
        (
            {"response_mask": torch.ones(4, 6, dtype=torch.bool)},
            r"response_mask has shape \(4, 6\), expected \(B, T\) = \(4, 5\)\.",
        ),
        (
            {"response_mask": torch.ones(4, 5, dtype=torch.int64)},
            r"response_mask has dtype torch.int64, expected torch.bool: pass response_mask.bool\(\)\.",
        ),
        ({"group_ids": torch.zeros(5).long()}, r"group_ids has shape \(5,\), expected \(B\) = \(4,\)\."),
        ({"group_ids": torch.zeros(4)}, r"group_ids has dtype torch.float32, expected integers"),
        ({"visual_rows": torch.ones(4)}, r"visual_rows has dtype torch.float32, expected torch.bool"),
        ({"visual_rows": torch.ones(4, 1) > 0}, r"visual_rows has shape \(4, 1\), expected \(B\) = \(4,\)\."),
    ],
)
def test_a_shape_or_dtype_that_does_not_fit_is_named(change: dict, message: str) -> None:
    inputs = {
        "advantages": torch.zeros(4),
        "similarity": torch.zeros(4, 5),
        "response_mask": torch.ones(4, 5, dtype=torch.bool),
        "group_ids": torch.zeros(4).long(),
        "settings": PAPER,
    }
    with pytest.raises(ValueError, match=message):
        reweight_advantages(**inputs | change)


def test_hidden_states_that_do_not_fit_are_named() -> None:
    hidden, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"hidden has shape \(3, 4\), expected \(B, L, D\)\."):
        visual_prototype(hidden[0], mask)
    with pytest.raises(ValueError, match=r"visual_mask has shape \(2, 2\), expected \(B, L\) = \(2, 3\)\."):
        visual_prototype(hidden, mask[:, :2])
    with pytest.raises(ValueError, match=r"visual_mask has dtype torch.float32, expected torch.bool"):
        visual_prototype(hidden, mask.float())
    with pytest.raises(ValueError, match=r"prototype has shape \(2, 5\), expected \(B, D\) = \(2, 4\)\."):
        visual_similarity(hidden, torch.zeros(2, 5))
