"""verl's own trainer on a CPU, sampling with transformers: whether each step's rollouts are of the current weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.verl import toy_files
from tests.verl.launch import run_on_cpu, verl_config
from tests.verl.recording import LARGEST_DIFFERENCE, ROWS, SMALLEST_SPREAD, VERSION, RecordingTaskRunner
from vgpo.toy import checkpoint_path

TWO_WORKERS = (
    "trainer.n_gpus_per_node=2",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True",
)
FILTERED = ("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=reward")


def train(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """The metrics of two steps of 16 rollouts at a learning rate that changes them much."""
    prompts, metrics = toy_files.write_prompts(folder, 32), folder / "metrics.jsonl"
    config = verl_config(
        [
            "trainer.v1.trainer_mode=recording",
            "trainer.total_training_steps=2",
            "trainer.n_gpus_per_node=1",
            "trainer.val_before_train=False",
            "trainer.resume_mode=disable",
            "trainer.logger=[file]",
            f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={metrics}",
            f"data.train_files={prompts}",
            f"data.val_files={prompts}",
            "data.train_batch_size=4",
            "data.max_prompt_length=64",
            "data.max_response_length=40",
            f"reward.custom_reward_function.path={toy_files.__file__}",
            "algorithm.adv_estimator=grpo",
            f"actor_rollout_ref.model.path={checkpoint_path()}",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
            "actor_rollout_ref.rollout.n=4",
            *overrides,
        ]
    )
    run_on_cpu(config, RecordingTaskRunner)
    return [json.loads(line)["data"] for line in metrics.read_text().splitlines()]


@pytest.mark.process
@pytest.mark.timeout(900)
def test_rollouts_are_sampled_from_the_actors_current_weights(tmp_path: Path) -> None:
    """With two workers, a reference model, and groups of equal rewards sampled again: so every step changes much."""
    steps = train(tmp_path, *TWO_WORKERS, *FILTERED)
    check_current(steps)
    assert [step[ROWS] for step in steps] == [16, 16]
    assert [step[SMALLEST_SPREAD] for step in steps] == [1, 1]
    assert all(step["actor/grad_norm"] > 0.1 for step in steps)
    assert steps[0]["actor/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert steps[1]["actor/kl_loss"] > 0.01


@pytest.mark.process
@pytest.mark.timeout(900)
def test_a_failed_request_leaves_its_group_smaller(tmp_path: Path) -> None:
    steps = train(tmp_path, "+actor_rollout_ref.rollout.custom.failing_request=5")
    check_current(steps)
    assert [step[ROWS] for step in steps] == [15, 16]


def check_current(steps: list[dict[str, Any]]) -> None:
    """Whether each step's rollouts are of the weights before its update. Those of older ones differ by more than 1."""
    assert [step[VERSION] for step in steps] == [0, 1]
    assert max(step[LARGEST_DIFFERENCE] for step in steps) < 1e-4
