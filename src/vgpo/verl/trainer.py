"""verl's trainers with shaped advantages.

verl computes log-probabilities on its workers and advantages on its driver. The mixin asks the former for visual
similarity, and shapes the latter once verl's estimator has computed them:

1. `_compute_old_log_prob`: asks the engine of vgpo for the similarity of each token, in the pass that runs anyway, and
   runs one more pass over images with black patches if the shaping compares with them.
2. `_compute_advantage`: reads the rollouts of the step, without the rows that verl adds to fill a batch, shapes their
   advantages by group (a group is a `uid`, wherever its rollouts are), and writes them back under the same keys.
3. `_compute_metrics`, `_val_metrics_update`, `_save_checkpoint`, `_load_checkpoint`, `fit`: the run folder.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.utils.padding import response_from_nested

from vgpo.equations import focus_score
from vgpo.focus import named_visual_token_ids, visual_token_ids, visual_token_mask
from vgpo.metric_names import SAMPLING_FAILED_ROLLOUTS, SAMPLING_IMPORTANCE_RATIO, SAMPLING_LOG_PROB_GAP
from vgpo.policy.sampled import mean_gap
from vgpo.rewards import RewardError
from vgpo.shaping import IMAGE_SIGNALS, PROTOTYPE_SIGNALS, Shaped, Signals
from vgpo.training.checks import check_no_image_tokens, check_visual_tokens
from vgpo.training.collective import SingleProcess
from vgpo.training.metrics import RunningRatios
from vgpo.training.records import rollout_records
from vgpo.training.settings import RolloutLogSettings, settings_from
from vgpo.training.signals import required_signals, shape_batch, signals_of
from vgpo.verl.config import recipe_of
from vgpo.verl.metrics import SURPLUS, filter_metrics, trl_metrics
from vgpo.verl.names import CORRUPTED, CORRUPTION_FLAG, SIMILARITY_FLAG
from vgpo.verl.recorder import Recorder
from vgpo.verl.rewards import ERROR, METRIC
from vgpo.verl.rollouts import (
    Rollouts,
    group_advantages,
    importance_ratios,
    logged_by_rewards,
    read_rollouts,
    rollout_advantages,
    rollout_metrics,
)
from vgpo.verl.shaping_state import load_shaping_state, save_shaping_state
from vgpo.vllm.prompts import check_importance_ratio

logger = logging.getLogger(__name__)


class VisuallyGuided(PPOTrainer):
    """What vgpo adds to a trainer of verl's. A subclass names the mode of the trainer that it is."""

    mode: str

    def __init__(self, config: DictConfig) -> None:
        with open_dict(config):  # verl asks for its own names
            config.trainer.v1.trainer_mode = self.mode
        recipe = recipe_of(config)
        self.recipe = recipe
        self.shaping = recipe.method.build_shaping()
        self.required = required_signals(self.shaping, measure_focus=recipe.method.measure_focus)
        self.recorder = Recorder(recipe, list(config.vgpo.get("command", [])))
        self._rollout_log = settings_from(RolloutLogSettings, recipe.method)
        self._ratios = RunningRatios()
        self._last_rollouts: Rollouts | None = None
        self._last_written = -1
        self._failed = 0  # rollouts of the step
        self.recorder.open()
        super().__init__(config)

    @property
    def updates(self) -> int:
        """Optimizer steps of a step of verl's."""
        return int(self.recipe.plan.updates)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        looks = not IMAGE_SIGNALS.isdisjoint(self.required)
        self._visual_token_ids = (visual_token_ids if looks else named_visual_token_ids)(self._hf_config)

    @property
    def _hf_config(self) -> Any:
        from transformers import AutoConfig

        path = self.config.actor_rollout_ref.model.path
        return AutoConfig.from_pretrained(path, trust_remote_code=self.recipe.arguments.trust_remote_code)

    # Shaping

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """As the parent; the engine measures visual similarity in the same pass."""
        batch.extra_info[SIMILARITY_FLAG] = not PROTOTYPE_SIGNALS.isdisjoint(self.required)
        try:
            result = super()._compute_old_log_prob(batch, metrics)
        finally:
            # Left on, the pass of a reference model would replace the policy's similarity by its own.
            batch.extra_info[SIMILARITY_FLAG] = False
        result.extra_info[SIMILARITY_FLAG] = False
        if CORRUPTED in self.required:
            self._score_corrupted(result)
        return result

    def _score_corrupted(self, batch: Any) -> None:
        """Write log-probabilities of the responses after images with black patches, from one more pass."""
        batch.extra_info |= {
            CORRUPTION_FLAG: self.recipe.arguments.seed,
            "calculate_entropy": False,
            "compute_loss": False,
            "temperature": self.config.actor_rollout_ref.rollout.temperature,
        }
        try:
            self.actor_rollout_wg.compute_log_prob(batch)
        finally:
            batch.extra_info[CORRUPTION_FLAG] = None
        place = {"keys": batch.keys, "partition_id": batch.partition_id}
        data = tq.kv_batch_get(**place, select_fields=["log_probs", "response_mask"])
        scored = response_from_nested(data["log_probs"], data["response_mask"])
        tq.kv_batch_put(**place, fields=TensorDict({CORRUPTED: scored}, batch_size=len(batch.keys)))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """As the parent, with shaped advantages."""
        result = super()._compute_advantage(batch, metrics)
        rollouts = read_rollouts(result, self.required)
        signals = self._signals(rollouts)
        self._check(rollouts, signals.visual_rows)
        scalar = self._advantages(rollouts)
        shaped = shape_batch(self.shaping, scalar, signals)
        tq.kv_batch_put(
            keys=rollouts.keys,
            partition_id=result.partition_id,
            fields=nested_rows({"advantages": shaped.advantages * rollouts.response_mask}, rollouts),
        )
        self._ratios.add(shaped.statistics)
        self._last_rollouts = rollouts
        self._write_rollouts(rollouts, scalar, signals, shaped)
        self.recorder.num_groups += int(rollouts.group_ids.max()) + 1
        return result

    def _advantages(self, rollouts: Rollouts) -> Tensor:
        """The advantage of each rollout (B,): GRPO's as TRL computes it, or what another estimator of verl's gave."""
        if self.config.algorithm.adv_estimator != "grpo":
            return rollout_advantages(rollouts.advantages, rollouts.response_mask)
        total = rollouts.total_rewards(*self._rewards)
        return group_advantages(
            total, rollouts.group_ids, scale=self.config.algorithm.get("norm_adv_by_std_in_grpo", True)
        )

    @property
    def _rewards(self) -> tuple[list[str], list[float]]:
        """Names of the reward functions, and their weights."""
        names = self.recipe.run.reward_names
        return names, self.recipe.arguments.reward_weights or [1.0] * len(names)

    def _check(self, rollouts: Rollouts, visual_rows: Tensor) -> None:
        """Whether rewards, images and tokens of the rollouts are as they must be; rollouts that failed are a warning.

        Raises:
            RewardError, ValueError, RuntimeError: they are not.
        """
        check_rewards(rollouts)
        batch = {
            "prompts": [SimpleNamespace(num_images=number) for number in rollouts.num_images.tolist()],
            "visual_rows": visual_rows,
            "row_index": rollouts.row_index,
            "completion_ids": rollouts.responses,
            "completion_mask": rollouts.complete_mask,
        }
        check_no_image_tokens(batch, list(self.config.vgpo.banned_token_ids))
        if not IMAGE_SIGNALS.isdisjoint(self.required):
            check_visual_tokens(batch, self._visual_token_ids)
        failed = self.recipe.plan.rollouts // self.parameter_sync_step - len(rollouts.keys)
        if failed > 0:
            logger.warning(
                "Step %d: %d of %d rollouts have failed; their groups are smaller. verl's log says why ('Error in "
                "_run_prompt').", self.global_steps, failed, failed + len(rollouts.keys),
            )  # fmt: skip
        self._failed = max(0, failed)

    def _signals(self, rollouts: Rollouts) -> Signals:
        """The signals of the shaping."""
        progress = (self.global_steps - 1) / max(1, self.total_training_steps)
        tensors: dict[str, Tensor | None] = {
            "response_mask": rollouts.response_mask,
            "group_ids": rollouts.group_ids,
            "visual_rows": self._visual_rows(rollouts),
            "similarity": rollouts.similarity,
            "predicting_similarity": rollouts.predicting_similarity,
            "entropy": rollouts.entropy,
            "log_probs": rollouts.log_probs,
            CORRUPTED: rollouts.corrupted_log_probs,
            "progress": torch.full((len(rollouts.keys),), progress),
        }
        return signals_of({name: value for name, value in tensors.items() if value is not None}, self.required)

    def _visual_rows(self, rollouts: Rollouts) -> Tensor:
        """Rows whose prompt has an image; bool (B,)."""
        found = [visual_token_mask(prompt[None], self._visual_token_ids).any() for prompt in rollouts.prompts]
        return torch.stack(found)

    # The run folder

    def _write_rollouts(self, rollouts: Rollouts, scalar: Tensor, signals: Signals, shaped: Shaped) -> None:
        """Write the first groups of a step, when rollouts are due."""
        step = (self.global_steps - 1) * self.updates
        every = self.recipe.method.log_rollouts_steps
        is_due = every > 0 and (self._last_written < 0 or step // every > self._last_written // every)
        if not is_due:
            return
        self._last_written = step
        shown = rollouts.group_ids < self._rollout_log.log_rollouts_groups
        rows = sorted(torch.nonzero(shown)[:, 0].tolist(), key=lambda row: int(rollouts.group_ids[row]))
        names = self.recipe.run.reward_names
        prompts = [rollouts.prompts[row] for row in rows]
        columns = {
            "prompt_ids": pad_sequence(prompts, batch_first=True),
            "prompt_mask": pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True),
        }
        focus = None if signals.similarity is None else focus_score(signals.similarity, signals.response_mask, "paper")
        records, images = rollout_records(
            step=step + 1,
            batch={
                **columns,
                "completion_ids": rollouts.responses[rows],
                "completion_mask": rollouts.complete_mask[rows],
                "visual_rows": signals.visual_rows[rows],
                "scalar_advantages": scalar[rows],
                "advantages": shaped.advantages[rows],
                "rewards": rollouts.rewards(names)[rows],
                "group_ids": rollouts.group_ids[rows] + self.recorder.num_groups,
                "row_index": rollouts.row_index[rows],
            },
            dataset_rows=[self.train_dataset.rows[int(rollouts.row_index[row])] for row in rows],
            reward_names=names,
            accuracy_reward=self.recipe.accuracy_reward,
            action_mask=rollouts.response_mask[rows],
            focus=None if focus is None else focus[rows],
            diagnostics={name: values[rows] for name, values in shaped.diagnostics.items()},
            tokenizer=self.tokenizer,
        )
        self.recorder.folder.write_rollouts(records, images)

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        """As the parent; adds the metrics of a run on TRL, and writes them into the run folder."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        line = {**trl_metrics(metrics, timing_raw, self.updates), **self._rollout_metrics(metrics)}
        if self.recipe.arguments.loss_type == "dr_grpo":
            line.pop("kl", None)  # a sum over tokens there, not nats per token
        line |= self.recorder.log(global_steps * self.updates, self._epochs(global_steps), line)
        metrics.update(line)
        if self.recorder.alarms.stopping:
            if not self.recorder.is_saved(global_steps * self.updates):
                self._save_checkpoint()
                self.recorder.complete_checkpoint()
            self.recorder.check_alarms()

    def _epochs(self, step: int) -> float:
        return step * self.config.data.train_batch_size / max(1, len(self.train_dataset))

    def fit(self, agent_loop_manager: Any) -> None:
        """As the parent; the last line of metrics.jsonl says that the run has ended."""
        super().fit(agent_loop_manager)
        last = self.total_training_steps
        self.recorder.finish(last * self.updates, self._epochs(last))

    def _rollout_metrics(self, logged: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of the rollouts of the step."""
        rollouts, recipe = self._last_rollouts, self.recipe
        assert rollouts is not None
        metrics = rollout_metrics(rollouts, *self._rewards, list(self.config.vgpo.end_token_ids))
        metrics[SAMPLING_FAILED_ROLLOUTS] = float(self._failed)
        mode = recipe.arguments.vllm_importance_sampling_mode
        metrics |= importance_ratios(rollouts, of_sequences=mode.startswith("sequence"))
        if SAMPLING_IMPORTANCE_RATIO in metrics:
            check_importance_ratio([metrics[SAMPLING_IMPORTANCE_RATIO]], (self.global_steps - 1) * self.updates)
        if rollouts.sampled_log_probs is not None:
            gap = mean_gap(rollouts.log_probs, rollouts.sampled_log_probs, rollouts.response_mask)
            self._ratios.add({SAMPLING_LOG_PROB_GAP: gap})
        self.recorder.num_tokens += int(rollouts.lengths.sum()) + sum(map(len, rollouts.prompts))
        metrics |= self._ratios.flush(SingleProcess())
        metrics |= logged_by_rewards(rollouts.reward_info, METRIC)
        metrics["num_tokens"] = float(self.recorder.num_tokens)
        if recipe.method.dynamic_sampling:
            accuracies = rollouts.rewards([recipe.accuracy_reward])[:, 0].nan_to_num().tolist()
            evicted = logged.get(DAPO_FILTERED_REWARD_COUNTS_KEY, {})
            metrics |= filter_metrics(evicted, float(logged.get(SURPLUS, 0)), accuracies, recipe.plan.group_size)
        return metrics

    def _val_metrics_update(
        self, data_sources: Any, sample_uids: Any, reward_extra_infos_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """As the parent; writes the evaluation into the run folder."""
        when = "before" if self.global_steps == 0 else "after"
        self.recorder.evaluate(when, self.val_dataset.rows, reward_extra_infos_dict)
        return super()._val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)

    def _state_folder(self, step: int) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{step}"

    def _save_checkpoint(self) -> None:
        """As the parent; the weights are kept as `checkpoint-N` too, after the last step as `final`."""
        super()._save_checkpoint()
        save_shaping_state(self._state_folder(self.global_steps), self.shaping)
        self.recorder.keep_checkpoint(
            self.global_steps * self.updates,
            self._state_folder(self.global_steps),
            is_last=self.global_steps >= self.total_training_steps,
        )

    def _load_checkpoint(self) -> None:
        """As the parent; takes the run folder back to the checkpoint."""
        super()._load_checkpoint()
        if not self.config.vgpo.resumes:
            return
        found = self._state_folder(self.global_steps) if self.global_steps else None
        if found is not None:
            load_shaping_state(found, self.shaping)
        self.recorder.resume(self.global_steps * self.updates, found)
        if found is not None:
            with open_dict(self.config):  # verl would evaluate these weights as those before training
                self.config.trainer.val_before_train = False


def check_rewards(rollouts: Rollouts) -> None:
    """Whether the reward functions did what they must on every rollout.

    Raises:
        RewardError: one did not.
    """
    if error := next((info[ERROR] for info in rollouts.reward_info if ERROR in info), None):
        raise RewardError(error)


def nested_rows(columns: Mapping[str, Tensor], rollouts: Rollouts) -> TensorDict:
    """Padded columns (B, T) as verl keeps them: without padding, aligned with the keys."""
    lengths = rollouts.lengths.tolist()
    rows = {name: zip(values.float(), lengths, strict=True) for name, values in columns.items()}
    fields = {name: nested([row[:length] for row, length in pairs]) for name, pairs in rows.items()}
    return TensorDict(fields, batch_size=len(lengths))


def nested(rows: list[Tensor]) -> Tensor:
    """Rows of different lengths as one nested tensor."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@register_trainer("vgpo_sync")
class VGPOTrainerSync(VisuallyGuided, PPOTrainerSync):
    """Rollouts and updates take turns on the same devices, each batch by the weights that are updated."""

    mode = "sync"
