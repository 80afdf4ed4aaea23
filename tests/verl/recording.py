"""verl's own synchronous trainer, which also records what its rollouts are."""

import tests.verl.cpu_platform  # isort: skip  # noqa: F401 - before verl

from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1 import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

ROWS = "recorded/rows"
"""Metric: how many rollouts per step has, without padding."""
VERSION = "recorded/version"
"""Metric: the mean version of the weights from which they were sampled."""
LARGEST_DIFFERENCE = "recorded/log_prob_difference"
"""Metric: the largest difference of a token's log-probability between server and actor, before the update."""
SMALLEST_SPREAD = "recorded/reward_spread"
"""Metric: the smallest difference between the best and the worst reward of a group."""


@register_trainer("recording")
class RecordingTrainer(PPOTrainerSync):
    def __init__(self, config: DictConfig) -> None:
        config.trainer.v1.trainer_mode = "sync"  # verl looks for this name
        super().__init__(config)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_old_log_prob(batch, metrics)
        tags = {key: tag for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")}
        names = ["rollout_log_probs", "old_log_probs", "rm_scores"]
        data = tq.kv_batch_get(keys=list(tags), partition_id=batch.partition_id, select_fields=names)
        groups: dict[str, list[float]] = {}
        for key, scores in zip(tags, data["rm_scores"].unbind(), strict=True):
            groups.setdefault(key.partition("_")[0], []).append(scores.sum().item())
        differences = data["rollout_log_probs"].values() - data["old_log_probs"].values()
        metrics[ROWS] = len(tags)
        metrics[VERSION] = sum(tag["min_global_steps"] for tag in tags.values()) / len(tags)
        metrics[LARGEST_DIFFERENCE] = differences.abs().max().item()
        metrics[SMALLEST_SPREAD] = min(max(rewards) - min(rewards) for rewards in groups.values())
        return batch


@ray.remote
class RecordingTaskRunner(TaskRunnerV1.__ray_actor_class__):
    def run(self, config: DictConfig) -> None:
        import tests.verl.recording  # noqa: F401  (Ray sends this class by value: nothing has imported its module)

        super().run(config)
