"""The rollouts of a step on verl's driver: read from its TransferQueue, padded, and described by TRL's metrics."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vgpo.training.signals import group_numbers
from vgpo.verl.names import CORRUPTED, SIMILARITY

ALWAYS = (
    "uid", "index", "prompts", "responses", "response_mask", "advantages", "old_log_probs", "entropy", "extra_fields",
)  # fmt: skip
SAMPLED = "rollout_log_probs"
MEASURED = {"similarity": SIMILARITY, CORRUPTED: CORRUPTED}  # the field of each signal that a pass measures


@dataclass(frozen=True)
class Rollouts:
    """B rollouts with responses of up to T tokens, in the order of `keys`; padding is 0.

    Args:
        keys: of the rollouts in TransferQueue.
        group_ids: rollouts of one draw of a prompt share a number; int64 (B,).
        row_index: rows of the data set; int64 (B,).
        prompts: token ids, one tensor for each rollout.
        responses: token ids; int64 (B, T).
        lengths: tokens of each response; int64 (B,).
        response_mask: tokens that are trained on; bool (B, T).
        advantages: of verl's estimator; float32 (B, T).
        log_probs: of the policy that verl takes ratios against; (B, T).
        entropy: of the policy, in nats; (B, T).
        similarity: cosine with the visual prototype (B, T), or None where it was not measured.
        corrupted_log_probs: of the policy after images with black patches (B, T), or None where that was not scored.
        sampled_log_probs: of the rollout engine (B, T), or None where it gives none.
        reward_info: of each rollout, what its reward functions gave.
    """

    keys: list[str]
    group_ids: Tensor
    row_index: Tensor
    prompts: list[Tensor]
    responses: Tensor
    lengths: Tensor
    response_mask: Tensor
    advantages: Tensor
    log_probs: Tensor
    entropy: Tensor
    similarity: Tensor | None
    corrupted_log_probs: Tensor | None
    sampled_log_probs: Tensor | None
    reward_info: list[dict[str, Any]]

    def rewards(self, names: Sequence[str]) -> Tensor:
        """What each reward function gave, NaN where it did not apply; (B, R)."""
        return torch.tensor([[float(info[name]) for name in names] for info in self.reward_info])


def read_rollouts(batch: Any, signals: Collection[str]) -> Rollouts:
    """The rollouts of a batch, without the rows that verl has added to fill it.

    Args:
        batch: verl's `KVBatchMeta`, once its advantages are computed.
        signals: of `vgpo.shaping.Signals`, those that were measured.

    Raises:
        RuntimeError: a field is missing; names it.
    """
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    if not keys:
        raise RuntimeError(
            "All rollouts of a step have failed, so there is nothing to train on. The log of verl's agent loop says "
            "why (look for 'Error in _run_prompt')."
        )
    required = [*ALWAYS, *(field for signal, field in MEASURED.items() if signal in signals)]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[*required, SAMPLED])
    if missing := [name for name in required if name not in data]:
        raise RuntimeError(missing_fields(missing, sorted(data.keys())))
    responses, prompts = data["responses"], data["prompts"]
    lengths = responses.offsets().diff()
    return Rollouts(
        keys=keys,
        group_ids=group_numbers([str(uid) for uid in objects(data["uid"])], lengths.device),
        row_index=torch.tensor([int(index) for index in objects(data["index"])]),
        prompts=list(prompts.unbind()),
        responses=padded(responses),
        lengths=lengths,
        response_mask=padded(data["response_mask"]).bool(),
        advantages=padded(data["advantages"]),
        log_probs=padded(data["old_log_probs"]),
        entropy=padded(data["entropy"]),
        similarity=response_tokens(data[SIMILARITY], lengths) if SIMILARITY in required else None,
        corrupted_log_probs=padded(data[CORRUPTED]) if CORRUPTED in required else None,
        sampled_log_probs=padded(data[SAMPLED]) if SAMPLED in data else None,
        reward_info=[dict(fields["reward_extra_info"]) for fields in objects(data["extra_fields"])],
    )


def missing_fields(missing: Sequence[str], found: Sequence[str]) -> str:
    """What to say about fields that a batch lacks."""
    fix = (
        "The engine of vgpo did not compute the log-probabilities: set actor_rollout_ref.model.model_type and "
        "external_lib as `python -m vgpo.verl` does, and install vgpo on every node."
        if SIMILARITY in missing
        else "verl has written none; vgpo supports verl 0.9."
    )
    return f"The batch has no {', '.join(missing)}; found {list(found)}. {fix}"


def objects(column: Any) -> list[Any]:
    """A column that holds no tensors, in whichever of its classes TransferQueue returns it."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [getattr(value, "data", value) for value in values]


def padded(rows: Tensor) -> Tensor:
    """A nested tensor (B, *) padded on the right with zeros: (B, T)."""
    return pad_sequence(list(rows.unbind()), batch_first=True)


def response_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """Values at the response's tokens, of a nested tensor with values at all tokens: (B, T).

    A log-probability is the output at the token before; similarity is a token's own, so that nothing is shifted.
    """
    rows = [row[len(row) - length :] for row, length in zip(values.unbind(), lengths.tolist(), strict=True)]
    return pad_sequence(rows, batch_first=True)


def rollout_advantages(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """The advantage of each rollout, which all its tokens have: (B, T), bool (B, T) -> (B,); 0 without tokens.

    Raises:
        ValueError: the tokens of a rollout have different ones.
    """
    first = response_mask.int().argmax(1, keepdim=True)
    scalar = advantages.gather(1, first)[:, 0].masked_fill(~response_mask.any(1), 0.0)
    gap = (advantages - scalar[:, None]).abs().mul(response_mask).max()
    if gap > 1e-6 * scalar.abs().max().clamp(min=1):
        raise ValueError(
            "algorithm.adv_estimator gives the tokens of a rollout different advantages, expected one for each "
            "rollout, which vgpo shapes. Set it to grpo, rloo or another estimator of that kind."
        )
    return scalar


def rollout_metrics(
    rollouts: Rollouts, names: Sequence[str], weights: Sequence[float], ends: Sequence[int | None]
) -> dict[str, float]:
    """Metrics of rollouts under the names and with the definitions of TRL's GRPO.

    Args:
        rollouts: of a step.
        names: of the reward functions.
        weights: of the rewards in their sum.
        ends: tokens that end a response; one without is truncated.
    """
    rewards = rollouts.rewards(names)
    total = (rewards * torch.tensor(weights)).nansum(1)
    lengths = rollouts.lengths.float()
    last = rollouts.responses.gather(1, (rollouts.lengths[:, None] - 1).clamp(min=0))[:, 0]
    truncated = ~torch.isin(last, torch.tensor([end for end in ends if end is not None]))
    spread = group_std(total, rollouts.group_ids)
    mask = rollouts.response_mask
    metrics = {
        "reward": float(total.mean()),
        "reward_std": float(total.std()) if len(total) > 1 else 0.0,
        "frac_reward_zero_std": float((spread < 1e-8).float().mean()),
        "entropy": float(rollouts.entropy[mask].mean()) if mask.any() else 0.0,
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(truncated.float().mean()),
    }
    for name, values in zip(names, rewards.unbind(1), strict=True):
        given = values[~values.isnan()]
        if len(given):
            metrics[f"rewards/{name}/mean"] = float(given.mean())
            metrics[f"rewards/{name}/std"] = float(given.std()) if len(given) > 1 else 0.0
    return metrics


def group_std(values: Tensor, group_ids: Tensor) -> Tensor:
    """Standard deviation of values (B,) within each group: (number of groups,); 0 for a group of one."""
    numbers = range(int(group_ids.max()) + 1)
    return torch.stack([values[group_ids == number].std(correction=0) for number in numbers])


def logged_by_rewards(infos: Sequence[dict[str, Any]], prefix: str) -> dict[str, float]:
    """Means of the metrics that reward functions have logged under `prefix`."""
    names = dict.fromkeys(name for info in infos for name in info if name.startswith(prefix))
    values = {name: [float(info[name]) for info in infos if name in info] for name in names}
    return {name.removeprefix(prefix): math.fsum(some) / len(some) for name, some in values.items()}
