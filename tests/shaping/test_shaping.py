"""The interface: registered by name, told what to look at, checked before a model is loaded."""

import pytest
import torch

from tests.shaping.half import Half
from vgpo import VGPOSettings, reweight_advantages
from vgpo.shaping import SHAPINGS, Signals, VGPOShaping, build_shaping


def signals(**changes):
    values = {
        "response_mask": torch.ones(4, 6, dtype=torch.bool),
        "group_ids": torch.tensor([0, 0, 1, 1]),
        "visual_rows": torch.tensor([True, True, True, False]),
        "similarity": torch.linspace(-1, 1, 24).view(4, 6),
    }
    return Signals(**(values | changes))


def test_none_spreads_the_advantage_unchanged():
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0])
    shaped = build_shaping("none", {}).shape(advantages, signals(similarity=None))
    assert torch.equal(shaped.advantages, advantages[:, None].expand(4, 6))


def test_vgpo_is_the_equations():
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    settings = VGPOSettings(strength=0.5)
    given = signals()
    shaped = VGPOShaping(settings).shape(advantages, given)
    expected = reweight_advantages(
        advantages, given.similarity, given.response_mask, given.group_ids, settings, visual_rows=given.visual_rows
    )
    assert torch.equal(shaped.advantages, expected.advantages)
    assert torch.equal(shaped.diagnostics["token_factor"], expected.token_factor)


def test_statistics_leave_rows_without_a_picture_out():
    shaped = VGPOShaping(VGPOSettings(gate_ratio=1.0, tail_ratio=1.0)).shape(torch.ones(4), signals())
    gate = shaped.statistics["focus/gate_rate"]
    assert float(gate.total) == float(gate.number) == 18  # 3 rows with an image, 6 tokens each, all of them gated


def test_with_both_grains_off_nothing_is_asked_for():
    shaping = build_shaping("vgpo", {"intra": False, "inter": False})
    assert shaping.signals == frozenset()
    assert shaping.scope == "rollout"


@pytest.mark.parametrize(
    ("options", "scope"),
    [({}, "group"), ({"inter": False}, "rollout"), ({"intra": False}, "group"), ({"preset": "released"}, "batch")],
)
def test_scope_is_what_a_rollout_depends_on(options, scope):
    assert build_shaping("vgpo", options).scope == scope
    assert build_shaping("none", {}).scope == "rollout"


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"shaping='vpgo' is not known \(did you mean 'vgpo'\?\)"):
        build_shaping("vpgo", {})
    with pytest.raises(ValueError, match=r"no option 'strenght' \(did you mean 'strength'\?\)"):
        build_shaping("vgpo", {"strenght": 1.0})


def test_a_third_way_needs_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(SHAPINGS, "half", Half)
    shaping = build_shaping("half", {"factor": 0.25})
    shaped = shaping.shape(torch.ones(4), signals(entropy=torch.zeros(4, 6)))
    assert torch.equal(shaped.advantages, torch.full((4, 6), 0.25))
