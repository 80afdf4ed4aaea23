"""Two processes make of the same rollouts what one process makes of them."""

import pytest
import torch

from tests.processes import NUM_PROCESSES, run_in_processes
from tests.trl import rollout_worker
from tests.trl.tiny import GROUP

SETTINGS = {
    "whole": {"per_device_train_batch_size": 2 * GROUP},
    "accumulated": {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": 2},
    "split": {"per_device_train_batch_size": GROUP // 2, "gradient_accumulation_steps": 4},
    "across": {"per_device_train_batch_size": GROUP // 2},
    "mixed": {"per_device_train_batch_size": GROUP, "mixed": True},
    "kl_perception": {"per_device_train_batch_size": GROUP // 2, "shaping": "kl_perception"},
    "kl_perception-mixed": {"per_device_train_batch_size": GROUP, "mixed": True, "shaping": "kl_perception"},
    "pgpo": {"per_device_train_batch_size": GROUP // 2, "gradient_accumulation_steps": 2, "shaping": "pgpo"},
    "pgpo-mixed": {"per_device_train_batch_size": GROUP, "mixed": True, "shaping": "pgpo"},
    "pepo": {
        "per_device_train_batch_size": GROUP // 2,
        "shaping": "pepo",
        "shaping_options": {"gradual": False},
    },
    "adaptive": {
        "per_device_train_batch_size": GROUP,
        "gradient_accumulation_steps": 2,
        "shaping": "adaptive",
        "shaping_options": {"correlation_rate": 0.5, "full_correlation": 1.0},
    },
}
"""Settings of each of two processes: groups whole, one to a slice, cut into slices, cut between the processes, and
mixed with text-only rows; rivals with groups cut, and one process that sees images beside one that sees none."""
DIVISION = {"per_device_train_batch_size", "gradient_accumulation_steps"}
DYNAMIC = {"per_device_train_batch_size": 2 * GROUP, "dynamic_sampling": True, "max_steps": 3}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_in_processes(rollout_worker.train_and_write, folder, {**SETTINGS, "dynamic": DYNAMIC}, seconds=280)
    return folder


@pytest.mark.process
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one(tmp_path, two_processes, name):
    settings = SETTINGS[name]
    size = NUM_PROCESSES * settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    undivided = {name: value for name, value in settings.items() if name not in DIVISION}
    expected = rollout_worker.train(tmp_path, {**undivided, "per_device_train_batch_size": size})
    first, second = (torch.load(two_processes / f"{name}-{rank}.pt") for rank in range(NUM_PROCESSES))
    rollouts = first["rollouts"] | second["rollouts"]
    assert rollouts.keys() == expected["rollouts"].keys()
    assert len(rollouts) == 2 * size
    for tokens, advantages in expected["rollouts"].items():
        torch.testing.assert_close(rollouts[tokens], advantages, atol=2e-4, rtol=1e-3)
    for parameter, weight in expected["weights"].items():
        torch.testing.assert_close(first["weights"][parameter], weight, atol=2e-4, rtol=0)
        assert torch.equal(first["weights"][parameter], second["weights"][parameter])


@pytest.mark.process
def test_dynamic_sampling_fills_every_process_with_groups_of_its_own(two_processes):
    outputs = [torch.load(two_processes / f"dynamic-{rank}.pt") for rank in range(NUM_PROCESSES)]
    rewards_of = [{}, {}]
    for output, rewards in zip(outputs, rewards_of, strict=True):
        for group, reward in output["groups"]:
            rewards.setdefault(group, []).append(reward)
    assert not rewards_of[0].keys() & rewards_of[1].keys()
    for rewards in rewards_of:
        assert len(rewards) == 3 * 2  # steps, groups per step
        assert all(len(group) == GROUP and 0 < sum(group) < GROUP for group in rewards.values())
    for parameter, weight in outputs[0]["weights"].items():
        assert torch.equal(weight, outputs[1]["weights"][parameter])
    lines = [line for line in outputs[0]["log"] if "sampling/rounds" in line]
    assert all(line["sampling/groups_kept"] == 2 * NUM_PROCESSES for line in lines)
    assert max(line["sampling/groups_drawn"] for line in lines) > 2 * NUM_PROCESSES
