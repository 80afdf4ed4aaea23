"""What `VGPOSettings` accepts and what it says when it does not."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from vgpo import VGPOSettings


def test_defaults_are_the_papers() -> None:
    assert asdict(VGPOSettings()) == {
        "strength": 0.3,
        "tail_ratio": 0.5,
        "gate_ratio": 0.2,
        "schedule": "linear",
        "exponent": 2.0,
        "step": 0.5,
        "intra": True,
        "inter": True,
        "rollout_score": "sum",
        "focus_state": "reading",
        "preset": "paper",
    }


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        VGPOSettings().strength = 1.0
    with pytest.raises(TypeError):
        VGPOSettings(0.3)


@pytest.mark.parametrize(
    "values",
    [
        {"strength": 0},
        {"strength": 5.0},
        {"tail_ratio": 1, "gate_ratio": 1},
        {"schedule": "exponential", "exponent": 0.5},
        {"schedule": "step", "step": 1.0},
        {"exponent": 2.0, "step": 0.5},
        {"intra": False, "inter": False},
        {"preset": "released"},
        {"rollout_score": "mean"},
        {"focus_state": "predicting"},
        {"focus_state": "predicting", "preset": "released"},
    ],
)
def test_values_at_the_edge_of_their_range_are_accepted(values: dict) -> None:
    settings = VGPOSettings(**values)
    assert {name: vars(settings)[name] for name in values} == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": -0.1}, r"strength is -0.1, expected a number >= 0\."),
        ({"strength": float("nan")}, r"strength is nan, expected a number >= 0\."),
        ({"strength": float("inf")}, r"strength is inf, expected a number >= 0\."),
        ({"strength": "0.3"}, r"strength is '0.3', expected a number >= 0\."),
        ({"strength": True}, r"strength is True, expected a number >= 0\."),
        ({"tail_ratio": 0.0}, r"tail_ratio is 0.0, expected a number > 0 and <= 1\."),
        ({"tail_ratio": 1.5}, r"tail_ratio is 1.5, expected a number > 0 and <= 1\."),
        ({"gate_ratio": -1}, r"gate_ratio is -1, expected a number > 0 and <= 1\."),
        ({"schedule": "exponential", "exponent": 0}, r"exponent is 0, expected a number > 0\."),
        ({"schedule": "step", "step": 0}, r"step is 0, expected a number > 0 and <= 1\."),
        ({"schedule": "cosine"}, r"schedule is 'cosine', expected one of 'linear', 'exponential', 'step'\."),
        ({"preset": None}, r"preset is None, expected one of 'paper', 'released'\."),
        ({"intra": "false"}, r"intra is 'false', expected one of True, False\."),
        ({"inter": 1}, r"inter is 1, expected one of True, False\."),
        ({"rollout_score": "max"}, r"rollout_score is 'max', expected one of 'sum', 'mean'\."),
        ({"focus_state": "next"}, r"focus_state is 'next', expected one of 'reading', 'predicting'\."),
        (
            {"focus_state": "predicting", "intra": False, "inter": False},
            r"focus_state=predicting has no effect with intra=False and inter=False: "
            r"set intra=True or inter=True or leave focus_state out\.",
        ),
        (
            {"rollout_score": "mean", "inter": False},
            r"rollout_score=mean has no effect with inter=False: set inter=True or leave rollout_score out\.",
        ),
        (
            {"exponent": 3.0},
            r"exponent=3.0 has no effect with schedule='linear': "
            r"set schedule='exponential' or leave exponent out\.",
        ),
        (
            {"schedule": "exponential", "step": 0.7},
            r"step=0.7 has no effect with schedule='exponential': "
            r"set schedule='step' or leave step out\.",
        ),
        (
            {"strength": 1.0, "intra": False, "inter": False},
            r"strength=1.0 has no effect with intra=False and inter=False: "
            r"set intra=True or inter=True or leave strength out\.",
        ),
        ({"schedule": "step", "intra": False, "inter": False}, r"schedule=step has no effect with intra=False and"),
        ({"schedule": "step", "exponent": 1.0}, r"exponent=1.0 has no effect with schedule='step'"),
    ],
)
def test_values_out_of_range_or_without_effect_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGPOSettings(**values)
