"""A few steps with fixed rollouts end where they ended when the trajectory was recorded.

A change of the mathematics shows here first. If it is meant, record anew and say in the commit why it moved:
python -m tests.trl.test_golden
"""

import json
import tempfile
from pathlib import Path

import pytest

from tests.trl.rollout_worker import train

GOLDEN = Path(__file__).with_name("golden.json")
SETTINGS = {
    "paper": {"per_device_train_batch_size": 16, "max_steps": 4},
    "released": {"per_device_train_batch_size": 16, "max_steps": 4, "preset": "released"},
    "old_pass": {"per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": 4},
    "none": {"per_device_train_batch_size": 16, "max_steps": 4, "shaping": "none"},
}
NUMBERS = ("loss", "grad_norm", "reward", "focus/mean", "focus/late_early_ratio", "focus/gate_rate",
           "focus/token_factor_spread", "focus/rollout_factor_spread")  # fmt: skip


def trajectory(folder: Path, name: str) -> list[dict[str, float]]:
    log = train(folder, SETTINGS[name])["log"]
    return [{key: line[key] for key in NUMBERS if key in line} for line in log if "loss" in line]


@pytest.mark.train
@pytest.mark.parametrize("name", SETTINGS)
def test_trajectory_is_the_recorded_one(tmp_path, name):
    recorded = json.loads(GOLDEN.read_text())[name]
    steps = trajectory(tmp_path, name)
    assert len(steps) == len(recorded) == 4
    for step, expected in zip(steps, recorded, strict=True):
        assert step == pytest.approx(expected, rel=2e-3, abs=2e-5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps({name: trajectory(Path(folder), name) for name in SETTINGS}, indent=1) + "\n")
