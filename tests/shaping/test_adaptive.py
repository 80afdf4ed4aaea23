"""The adaptive shaping against plain loops, at its limits, and for what it must not depend on."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.shaping import naive_adaptive as naive
from vgpo.equations import VGPOSettings, group_index, reweight_advantages
from vgpo.shaping import AdaptiveShaping, Signals, build_shaping
from vgpo.shaping.adaptive import (
    blind_strength,
    fitted_line,
    focus_curve,
    group_correlation,
    measured_share,
    response_bins,
)

NAN = float("nan")
GROUP = 4


def batch(num_groups: int = 5, width: int = 23, seed: int = 0) -> tuple[Tensor, Signals]:
    """Groups of two strata in float64: decaying focus, holes, rows without an image, NaN where none may read."""
    generator = torch.Generator().manual_seed(seed)
    B = num_groups * GROUP

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (B, 1), generator=generator)
    mask = (torch.arange(width) < lengths) & (draw(B, width) < 0.9)
    mask[:, 0] = True
    visual_rows = torch.arange(B) % 7 != 3
    focus = 0.3 * draw(B, 1) + 0.4 * draw(B, width) - 0.5 * torch.arange(width) / width * draw(B, 1)
    focus[~mask | ~visual_rows[:, None]] = NAN
    rewards = (draw(B) < 0.3 + focus.nanmean(1).nan_to_num()).double()
    rewards[:GROUP] = 1  # equal
    groups = torch.arange(B) // GROUP
    mean = rewards.view(-1, GROUP).mean(1).repeat_interleave(GROUP)
    std = rewards.view(-1, GROUP).std(1).repeat_interleave(GROUP)
    return (rewards - mean) / (std + 1e-4), Signals(
        response_mask=mask,
        group_ids=groups * 3 + 5,
        visual_rows=visual_rows,
        similarity=focus,
        text_only_accuracy=((groups % 3).double() / 2),
        chance=torch.where(groups % 2 == 0, 0.25, 0.0).double(),
        stratum=groups % 2,
    )


def adaptive(**options: Any) -> AdaptiveShaping:
    shaping = build_shaping("adaptive", options)
    assert isinstance(shaping, AdaptiveShaping)
    return shaping


def with_correlation(value: float, **options: Any) -> AdaptiveShaping:
    """A shaping whose running correlation is such, and hardly moves."""
    shaping = adaptive(correlation_rate=1e-12, **options)
    shaping.load_state_dict({"correlation": {"all": value}})
    return shaping


def cosines(signals: Signals) -> dict[int, list[list[float]]]:
    """Of the tokens that count, by group number and row."""
    found: dict[int, list[list[float]]] = {}
    for i, number in enumerate(group_index(signals.group_ids).tolist()):
        assert signals.similarity is not None
        found.setdefault(number, []).append(signals.similarity[i][signals.scored_mask[i]].tolist())
    return {number: [row for row in rows if row] for number, rows in found.items()}


def test_the_correlation_of_a_group_is_that_of_loops():
    advantages, signals = batch()
    focus = torch.rand(len(advantages), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    focus[8:12] = 0.5  # equal
    takes_part = signals.visual_rows
    found, varies = group_correlation(
        torch.where(takes_part, focus, NAN), advantages, takes_part, group_index(signals.group_ids)
    )
    for g in range(5):
        rows = [i for i in range(GROUP * g, GROUP * (g + 1)) if takes_part[i]]
        expected = naive.correlation(focus[rows].tolist(), advantages[rows].tolist())
        assert bool(varies[g]) == (expected is not None)
        assert float(found[g]) == pytest.approx(expected or 0.0, abs=1e-12)
    assert not varies[0]
    assert not varies[5:].any()
    assert float(found[2]) == 0


def test_correlation_by_hand():
    # Deviations of the focus -0.1 0.1, of the advantages -1 1: c = 1; the other way round -1.
    focus, advantages = torch.tensor([0.4, 0.6, 0.6, 0.4]), torch.tensor([-1.0, 1.0, -1.0, 1.0])
    found, _ = group_correlation(focus, advantages, torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_advantages_that_are_rounding_do_not_vary():
    rewards = torch.full((8,), 0.1)
    noise = (rewards - rewards.mean() * (1 + 2**-23)) / 1e-4 * torch.tensor([1.0, -1] * 4)
    assert noise.abs().max() > 0
    everywhere = torch.ones(8, dtype=torch.bool)
    _, varies = group_correlation(torch.linspace(0, 1, 8), noise, everywhere, torch.zeros(8, dtype=torch.int64))
    assert not varies.any()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10, 11, 40])
def test_bins_are_those_of_exact_fractions(length):
    found = response_bins(torch.ones(1, length, dtype=torch.bool))[0].tolist()
    assert found == [naive.bin_of(t, length) for t in range(1, length + 1)]


def test_curve_line_and_share_are_those_of_loops():
    _, signals = batch(seed=3)
    group, counted, similarity = group_index(signals.group_ids), signals.scored_mask, signals.similarity
    curve, filled = focus_curve(similarity, counted, group)
    line = fitted_line(curve, filled)
    for number, rows in cosines(signals).items():
        points = naive.curve(rows)
        assert filled[number].nonzero()[:, 0].tolist() == sorted(points)
        assert {b: float(curve[number, b]) for b in points} == pytest.approx(points, abs=1e-12)
        assert (float(line.start[number]), float(line.decay[number])) == pytest.approx(naive.line(points), abs=1e-10)
    assert not line.exists[5:].any()
    for forgetting in ("slope", "curve"):
        share = measured_share(similarity, counted, group, forgetting, 0.55)
        for number, rows in cosines(signals).items():
            some = [i for i in range(len(group)) if group[i] == number and counted[i].any()]
            for i, expected in zip(some, naive.shares(rows, forgetting, 0.55), strict=True):
                assert share[i][counted[i]].tolist() == pytest.approx(expected, abs=1e-10)


def test_no_line_without_two_bins_or_above_zero():
    one_bin, all_bins = torch.arange(10) == 4, torch.ones(10, dtype=torch.bool)
    curves = torch.stack([torch.full((10,), 0.5), torch.linspace(-0.1, 0.9, 10), torch.zeros(10)])
    line = fitted_line(curves, torch.stack([one_bin, all_bins, all_bins]))
    assert line.exists.tolist() == [False, False, False]
    assert line.decay.tolist() == [0, 0, 0]


def test_blind_strength_by_hand():
    # 1 - 0; 1 - 1/2; 1 - 1; (1 - 1/2) / (1 - 1/4) = 2/3; (1 - 0) / (1 - 1/4) is clipped to 1.
    found = blind_strength(torch.tensor([0, 0.5, 1, 0.5, 0]), torch.tensor([0, 0, 0, 0.25, 0.25]))
    torch.testing.assert_close(found, torch.tensor([1, 0.5, 0, 2 / 3, 1]))


@pytest.mark.parametrize("forgetting", ["given", "slope", "curve"])
@pytest.mark.parametrize("blind", [False, True])
def test_several_batches_of_two_strata_are_those_of_loops(forgetting, blind):
    shaping = adaptive(forgetting=forgetting, blind_gate=blind, stratum_column="source")
    shaping.strata = ("a", "b")
    loops = naive.Adaptive(forgetting, blind=blind)
    for seed in range(4):
        advantages, signals = batch(seed=seed)
        shaped = shaping.shape(advantages, signals)
        rows = {"visual": signals.visual_rows.tolist(), "stratum": signals.stratum.tolist(),
                "blind": signals.text_only_accuracy.tolist(), "chance": signals.chance.tolist()}  # fmt: skip
        expected = loops.shape(
            advantages.tolist(), signals.similarity, signals.response_mask, signals.group_ids.tolist(), rows
        )
        torch.testing.assert_close(shaped.advantages, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
        without = ~signals.visual_rows
        assert torch.equal(shaped.advantages[without], advantages[without, None].expand(-1, 23))
        assert all(value.isfinite().all() for value in shaped.diagnostics.values())
        running = shaping.state_dict()["correlation"]
        assert running == pytest.approx({name: loops.running.get(k, 0.0) for k, name in enumerate("ab")}, abs=1e-9)
        strength = shaped.statistics["adaptive/strength/a"]
        assert float(strength.total / strength.number) == pytest.approx(naive.clip(running["a"] / 0.2))
    assert loops.running[0] != 0
    assert loops.running[1] != 0


@pytest.mark.parametrize("focus_state", ["reading", "predicting"])
@pytest.mark.parametrize("shaping", [
    lambda **options: adaptive(forgetting="given", earned=False, **options),
    lambda **options: with_correlation(0.2, forgetting="given", **options),
], ids=["not earned", "earned in full"])  # fmt: skip
def test_full_strength_is_vgpo_with_the_mean_score(shaping, focus_state):
    advantages, signals = batch()
    similarity = signals.similarity
    if focus_state == "predicting":
        signals = dataclasses.replace(signals, predicting_similarity=similarity, similarity=None)
    expected = reweight_advantages(
        advantages, similarity, signals.response_mask, signals.group_ids, VGPOSettings(rollout_score="mean"),
        signals.visual_rows,
    )  # fmt: skip
    assert torch.equal(shaping(focus_state=focus_state).shape(advantages, signals).advantages, expected.advantages)


@pytest.mark.parametrize("correlation", [0.0, -0.4])
def test_no_strength_is_the_base_algorithm(correlation):
    advantages, signals = batch()
    shaping = with_correlation(correlation)
    shaped = shaping.shape(-advantages * 0, signals)  # no group varies: nothing is learned
    assert shaping.state_dict() == {"correlation": {"all": correlation}}
    shaped = shaping.shape(advantages, signals) if correlation else shaped
    expected = advantages if correlation else -advantages * 0
    assert torch.equal(shaped.advantages, expected[:, None].expand(shaped.advantages.shape))


def falling(decay: float, T: int = 40) -> tuple[Tensor, Signals]:
    """Two groups whose cosine is 0.5 (1 - f u) at the middle of each bin, with one token at 0 in the first bin."""
    u = (torch.arange(T, dtype=torch.float64) // (T // 10) + 0.5) / 10
    rows = (0.5 * (1 - decay * u)).repeat(4, 1)
    return torch.tensor([1.0, -1, 0.5, -0.5], dtype=torch.float64), Signals(
        response_mask=torch.ones(4, T, dtype=torch.bool),
        group_ids=torch.tensor([0, 0, 1, 1]),
        visual_rows=torch.ones(4, dtype=torch.bool),
        similarity=rows + torch.linspace(0, 1e-3, 4, dtype=torch.float64)[:, None],
    )


def plain(advantages: Tensor, signals: Signals, **settings: Any) -> Tensor:
    settings = {"rollout_score": "mean", **settings}
    return reweight_advantages(
        advantages, signals.similarity, signals.response_mask, signals.group_ids, VGPOSettings(**settings)
    ).advantages


@pytest.mark.parametrize("decay", [0.9, -0.5, 0.0])
def test_slope_is_vgpo_where_focus_decays_and_uncompensated_where_it_does_not(decay):
    advantages, signals = falling(decay)
    found = adaptive(earned=False, forgetting="slope").shape(advantages, signals).advantages
    expected = plain(advantages, signals) if decay > 0 else plain(advantages, signals, strength=0.0)
    assert torch.equal(found, expected)


def test_signed_turns_the_deviations_of_negative_advantages_round():
    advantages, signals = falling(0.9)
    unsigned = adaptive(earned=False).shape(advantages, signals)
    signed = adaptive(earned=False, signed=True).shape(advantages, signals)
    psi = unsigned.diagnostics["token_factor"] - 1
    phi = unsigned.diagnostics["rollout_factor"] - 1
    expected = advantages[:, None] * (1 - psi) * (1 - phi[:, None])
    is_negative = advantages < 0
    assert torch.equal(signed.advantages[~is_negative], unsigned.advantages[~is_negative])
    torch.testing.assert_close(signed.advantages[is_negative], expected[is_negative], atol=1e-12, rtol=0)
    assert not torch.allclose(signed.advantages[is_negative], unsigned.advantages[is_negative], atol=1e-3)


def test_curve_of_a_full_decay_is_progress_within_a_bin():
    # The lowest cosine is taken off, so that a straight line has f = 1 / (mean of the last bin, 0.95): F = 1 is near.
    _, signals = falling(0.9)
    counted, group = signals.scored_mask, group_index(signals.group_ids)
    share = measured_share(signals.similarity, counted, group, "curve", 1.0)
    progress = torch.arange(1, 41, dtype=torch.float64) / 40
    torch.testing.assert_close(share, progress.expand(4, -1), atol=0.1, rtol=0)


@pytest.mark.parametrize(("accuracy", "is_base"), [(0.0, False), (1.0, True)])
def test_the_blind_gate_goes_from_vgpo_to_the_base_algorithm(accuracy, is_base):
    advantages, signals = batch()
    signals = dataclasses.replace(
        signals, text_only_accuracy=torch.full_like(advantages, accuracy), chance=torch.zeros_like(advantages)
    )
    options = {"earned": False, "forgetting": "given"}
    found = adaptive(blind_gate=True, **options).shape(advantages, signals).advantages
    full = adaptive(**options).shape(advantages, signals).advantages
    assert torch.equal(found, advantages[:, None].expand(found.shape) if is_base else full)


def test_order_padding_and_other_groups_change_nothing():
    advantages, signals = batch()
    options = {"earned": False, "forgetting": "curve", "blind_gate": True}
    shaped = adaptive(**options).shape(advantages, signals).advantages
    order = torch.randperm(len(advantages), generator=torch.Generator().manual_seed(2))
    pad = torch.nn.functional.pad
    wide = {
        "similarity": pad(signals.similarity, (0, 3), value=NAN),
        "response_mask": pad(signals.response_mask, (0, 3)),
    }
    moved = Signals(**{name: value[order] for name, value in ({**vars(signals), **wide}).items() if value is not None})
    found = adaptive(**options).shape(advantages[order], moved).advantages
    torch.testing.assert_close(found[:, :23], shaped[order], atol=1e-12, rtol=0)
    rows = slice(GROUP, 2 * GROUP)
    alone = Signals(**{name: value[rows] for name, value in vars(signals).items() if value is not None})
    torch.testing.assert_close(
        adaptive(**options).shape(advantages[rows], alone).advantages, shaped[rows], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(dtype):
    advantages, signals = batch()
    rounded = dataclasses.replace(signals, similarity=signals.similarity.to(dtype))
    exact = dataclasses.replace(signals, similarity=rounded.similarity.double())
    options = {"forgetting": "slope", "blind_gate": True}
    found = with_correlation(0.1, **options).shape(advantages.float(), rounded).advantages
    assert found.dtype == torch.float32
    expected = with_correlation(0.1, **options).shape(advantages, exact).advantages
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_the_state_is_by_name():
    advantages, signals = batch()
    first = adaptive(stratum_column="source")
    first.strata = ("a", "b")
    first.shape(advantages, signals)
    state = first.state_dict()
    second = adaptive(stratum_column="source")
    second.strata = ("b", "c")  # stratum 0 was "b", and "c" is new
    second.load_state_dict(state)
    assert second.state_dict() == state
    flat = torch.zeros_like(advantages)
    second.shape(flat, signals)
    assert second.state_dict() == {"correlation": {"b": state["correlation"]["b"], "c": 0.0}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation_rate": 0.0}, "correlation_rate is 0.0, expected a number > 0 and <= 1"),
        ({"forgetting": "line"}, "forgetting is 'line', expected one of 'given', 'slope', 'curve'"),
        ({"earned": False, "full_correlation": 0.3}, "full_correlation=0.3 has no effect with earned=False"),
        ({"earned": False, "stratum_column": "x"}, "stratum_column=x has no effect with earned=False"),
        ({"blind_rollouts": 4}, "blind_rollouts=4 has no effect with blind_gate=False"),
        ({"forgetting": "given", "full_slope": 0.5}, "full_slope=0.5 has no effect with forgetting='given'"),
        ({"strength": 0.0, "forgetting": "curve"}, "forgetting='curve' has no effect without a compensation"),
        ({"intra": False, "inter": False, "blind_gate": True}, "blind_gate=True has no effect with intra=False"),
        ({"schedule": "step"}, "no option 'schedule'"),
    ],
    ids=str,
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        adaptive(**options)


@pytest.mark.parametrize(
    ("options", "scope"),
    [
        ({}, "batch"),
        ({"earned": False}, "group"),
        ({"earned": False, "inter": False}, "group"),
        ({"earned": False, "inter": False, "forgetting": "given", "blind_gate": True}, "rollout"),
        ({"intra": False, "inter": False}, "rollout"),
    ],
)
def test_scope(options, scope):
    assert adaptive(**options).scope == scope


@pytest.mark.parametrize("options", [{"earned": False}, {"intra": False, "inter": False}], ids=str)
def test_without_an_earned_strength_there_is_no_state(options):
    shaping = adaptive(**options)
    shaping.shape(*batch())
    assert shaping.state_dict() == {}
    shaping.load_state_dict({})
