"""Rewards of a recipe in verl's reward workers: the functions and graders of `vgpo.rewards`, a rollout at a time."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerState
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from vgpo.policy.prompts import response_prefix
from vgpo.rewards import RewardError, is_async, load_reward, reward_name
from vgpo.rewards.checked import with_prefix
from vgpo.verl.config import recipe_of
from vgpo.verl.dataset import COLUMNS, HELD_OUT, images_of, processor_of_recipe

ERROR = "vgpo_error"
"""Of a rollout's reward information: what a reward function did wrong, for the driver to raise."""
METRIC = "metric/"
"""Prefix of metrics that a reward function logs."""
EXTRA = "extra/"
"""Prefix of columns that a reward function logs."""
ANSWER = "vgpo_answer"
"""Of a held-out question: `{"row", "completion", "truncated"}` in JSON, since verl computes statistics of the rest."""


@dataclass
class Logged:
    """What reward functions log beside their rewards, of one rollout."""

    values: dict[str, Any] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """As TRL's: the mean over rollouts becomes a metric."""
        self.values[METRIC + name] = float(value)

    def log_extra(self, column: str, values: list[Any]) -> None:
        """As TRL's; verl's trackers have the column under this prefix."""
        self.values[EXTRA + column] = values[0]


class VGPORewardManager(RewardManagerBase):
    """Grades one rollout; its score is the weighted sum of the recipe's rewards that apply to it.

    A reward function is called as TRL calls it, with a batch of one completion.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.recipe = recipe = recipe_of(config)
        prefix = response_prefix(processor_of_recipe(recipe), recipe.chat_template_kwargs)
        self.functions = [with_prefix(load_reward(name), prefix) for name in recipe.run.rewards]
        self.weights = recipe.arguments.reward_weights or [1.0] * len(self.functions)
        self.steps = int(config.actor_rollout_ref.actor.optim.total_training_steps * recipe.plan.updates)
        self.ends = list(config.vgpo.end_token_ids)
        # One thread: graders and user-defined functions need not be safe for more.
        self.thread = ThreadPoolExecutor(max_workers=1)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last item of `data`, and of each function under its own name."""
        logged = Logged()
        item = data[-1:][0]
        columns = self._columns(item, logged)
        if item.non_tensor_batch["data_source"] == HELD_OUT:
            logged.values[ANSWER] = self._answer(columns)
        try:
            rewards = {reward_name(function): await self._grade(function, columns) for function in self.functions}
        except RewardError as error:  # verl would count the rollout as failed, and continue
            rewards = dict.fromkeys(map(reward_name, self.functions), math.nan)
            logged.values[ERROR] = str(error)
        pairs = zip(self.weights, rewards.values(), strict=True)
        score = sum(weight * reward for weight, reward in pairs if not math.isnan(reward))
        return {"reward_score": score, "reward_extra_info": {**rewards, **logged.values}}

    async def _grade(self, function: Any, columns: dict[str, Any]) -> float:
        """The reward, NaN where the function does not apply."""
        if is_async(function):
            (reward,) = await function(**columns)
        else:
            (reward,) = await self.loop.run_in_executor(self.thread, lambda: function(**columns))
        return math.nan if reward is None else reward

    def _answer(self, columns: dict[str, Any]) -> str:
        (ids,), ((message,),) = columns["completion_ids"], columns["completions"]
        truncated = not ids or ids[-1] not in self.ends
        answer = {"row": columns["row_index"][0], "completion": message["content"], "truncated": truncated}
        return json.dumps(answer)

    def _columns(self, item: Any, logged: Logged) -> dict[str, Any]:
        """What a reward function is called with: a list of one entry for each column."""
        length = int(item.batch["attention_mask"][-item.batch["responses"].shape[-1] :].sum())
        ids = item.batch["responses"][:length].tolist()
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        fields = item.non_tensor_batch
        messages = list(fields["raw_prompt"])
        step = max(0, int(fields["global_steps"]) - 1) * int(self.recipe.plan.updates)  # done before the rollout
        row = {**fields[COLUMNS], "images": images_of(messages)}
        return {
            **{name: [value] for name, value in row.items()},
            "prompts": [messages],
            "completions": [[{"role": "assistant", "content": text}]],
            "completion_ids": [ids],
            "trainer_state": TrainerState(global_step=step, max_steps=self.steps),
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
