"""verl's own synchronous trainer, which also records how its rollouts agree with its actor."""

from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1 import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

LARGEST_DIFFERENCE = "recorded/log_prob_difference"
"""Metric: the largest difference of a token's log-probability between server and actor, before the update."""


@register_trainer("recording")
class RecordingTrainer(PPOTrainerSync):
    def __init__(self, config: DictConfig) -> None:
        config.trainer.v1.trainer_mode = "sync"  # verl looks for this name
        super().__init__(config)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_old_log_prob(batch, metrics)
        rows = [(key, tag) for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        names = ["rollout_log_probs", "old_log_probs"]
        data = tq.kv_batch_get(keys=[key for key, _ in rows], partition_id=batch.partition_id, select_fields=names)
        sampled, scored = (data[name].values() for name in names)
        metrics[LARGEST_DIFFERENCE] = (sampled - scored).abs().max().item()
        metrics["recorded/rows"] = len(rows)
        metrics["recorded/versions"] = sum(tag["min_global_steps"] for _, tag in rows) / len(rows)
        return batch


@ray.remote
class RecordingTaskRunner(TaskRunnerV1.__ray_actor_class__):
    def run(self, config: DictConfig) -> None:
        import tests.verl.recording  # noqa: F401  (Ray sends this class by value: nothing has imported its module)

        super().run(config)
