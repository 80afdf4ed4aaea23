"""The rollouts of a step on verl's driver: read from its TransferQueue, padded, and described by TRL's metrics."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vgpo.metric_names import SAMPLING_IMPORTANCE_RATIO
from vgpo.shaping import PROTOTYPE_SIGNALS
from vgpo.training.signals import group_numbers
from vgpo.verl.names import CORRUPTED, SIMILARITY

ALWAYS = (
    "uid", "index", "num_images", "prompts", "responses", "response_mask", "advantages", "old_log_probs", "entropy",
    "extra_fields",
)  # fmt: skip
SAMPLED = "rollout_log_probs"
# The field of each signal that a pass measures.
MEASURED = {**dict.fromkeys(PROTOTYPE_SIGNALS, SIMILARITY), CORRUPTED: CORRUPTED}


@dataclass(frozen=True)
class Rollouts:
    """B rollouts with responses of up to T tokens, in the order of `keys`; padding is 0.

    Args:
        keys: of the rollouts in TransferQueue.
        group_ids: rollouts of one draw of a prompt share a number; int64 (B,).
        row_index: rows of the dataset; int64 (B,).
        num_images: of each prompt; int64 (B,).
        prompts: token ids, one tensor for each rollout.
        responses: token ids; int64 (B, T).
        lengths: tokens of each response; int64 (B,).
        response_mask: tokens that are trained on; bool (B, T).
        advantages: of verl's estimator; float32 (B, T).
        log_probs: of the policy that verl takes ratios against; (B, T).
        entropy: of the policy, in nats; (B, T).
        similarity: cosine with the visual prototype of the state after reading each token (B, T), or None where it is
            not asked for.
        predicting_similarity: the same of the state that predicts each token.
        corrupted_log_probs: of the policy after images with black patches (B, T), or None where that was not scored.
        sampled_log_probs: of the rollout engine (B, T), or None where it gives none.
        reward_info: of each rollout, what its reward functions gave.
    """

    keys: list[str]
    group_ids: Tensor
    row_index: Tensor
    num_images: Tensor
    prompts: list[Tensor]
    responses: Tensor
    lengths: Tensor
    response_mask: Tensor
    advantages: Tensor
    log_probs: Tensor
    entropy: Tensor
    similarity: Tensor | None
    predicting_similarity: Tensor | None
    corrupted_log_probs: Tensor | None
    sampled_log_probs: Tensor | None
    reward_info: list[dict[str, Any]]

    @property
    def complete_mask(self) -> Tensor:
        """Tokens of the responses, also of those that are not trained on; bool (B, T)."""
        return torch.arange(self.responses.shape[1]) < self.lengths[:, None]

    def rewards(self, names: Sequence[str]) -> Tensor:
        """What each reward function gave, NaN where it did not apply; (B, R)."""
        return torch.tensor([[float(info[name]) for name in names] for info in self.reward_info])

    def total_rewards(self, names: Sequence[str], weights: Sequence[float]) -> Tensor:
        """The weighted sum of the rewards, NaN where none applied; (B,)."""
        rewards = self.rewards(names)
        total = (rewards * torch.tensor(weights)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), float("nan"))


def read_rollouts(batch: Any, signals: Collection[str]) -> Rollouts:
    """The rollouts of a batch, without the rows that verl has added to fill it.

    Args:
        batch: verl's `KVBatchMeta`, once its advantages are computed.
        signals: of `vgpo.shaping.Signals`, those that were measured.

    Raises:
        RuntimeError: a field is missing; names it.
    """
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    measured = sorted({field for signal, field in MEASURED.items() if signal in signals})
    required = [*ALWAYS, *measured]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[*required, SAMPLED])
    if missing := [name for name in required if name not in data]:
        raise RuntimeError(missing_fields(missing, sorted(data.keys())))
    responses, prompts = data["responses"], data["prompts"]
    lengths = responses.offsets().diff()
    return Rollouts(
        keys=keys,
        group_ids=group_numbers([str(uid) for uid in objects(data["uid"])], lengths.device),
        row_index=torch.tensor([int(index) for index in objects(data["index"])]),
        num_images=torch.tensor([int(number) for number in objects(data["num_images"])]),
        prompts=list(prompts.unbind()),
        responses=padded(responses),
        lengths=lengths,
        response_mask=padded(data["response_mask"]).bool(),
        advantages=padded(data["advantages"]),
        log_probs=padded(data["old_log_probs"]),
        entropy=padded(data["entropy"]),
        similarity=response_tokens(data[SIMILARITY], lengths) if "similarity" in signals else None,
        predicting_similarity=(
            response_tokens(data[SIMILARITY], lengths, earlier=1) if "predicting_similarity" in signals else None
        ),
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


def response_tokens(values: Tensor, lengths: Tensor, *, earlier: int = 0) -> Tensor:
    """Values at the response's tokens, of a nested tensor with values at all tokens: (B, T).

    Args:
        values: nested (B, prompt + response), the value at a token belongs to the state at that very token.
        lengths: tokens of each response; int64 (B,).
        earlier: take the values so many tokens earlier: 1 for the state that predicts a token, of which that of the
            first one is at the last token of the prompt.
    """
    rows = [
        row[len(row) - length - earlier : len(row) - earlier]
        for row, length in zip(values.unbind(), lengths.tolist(), strict=True)
    ]
    return pad_sequence(rows, batch_first=True)


def group_advantages(total: Tensor, group_ids: Tensor, *, scale: bool) -> Tensor:
    """GRPO's advantages with TRL's definitions: A_i = (r_i - mean) / (std + 1e-4) over the group of i.

    Rollouts whose reward is NaN are in no mean and have the advantage 0, as has the only rollout of a group.

    Args:
        total: rewards (B,).
        group_ids: int64 (B,).
        scale: divide by the group's standard deviation.
    """
    advantages = torch.zeros_like(total)
    for group in group_ids.unique():
        rows = (group_ids == group) & ~total.isnan()
        known = total[rows]
        if len(known) > 1 and known.max() > known.min():  # else rounding, divided by 1e-4
            centred = known - known.mean()
            advantages[rows] = centred / (known.std() + 1e-4) if scale else centred
    return advantages


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
    rollouts: Rollouts, names: Sequence[str], weights: Sequence[float], ends: Sequence[int]
) -> dict[str, float]:
    """Metrics of rollouts under the names and with the definitions of TRL's GRPO.

    Args:
        rollouts: of a step.
        names: of the reward functions.
        weights: of the rewards in their sum.
        ends: tokens that end a response; one without is truncated.
    """
    rewards = rollouts.rewards(names)
    total = rollouts.total_rewards(names, weights)
    known = total[~total.isnan()]
    lengths = rollouts.lengths.float()
    last = rollouts.responses.gather(1, (rollouts.lengths[:, None] - 1).clamp(min=0))[:, 0]
    truncated = ~torch.isin(last, torch.tensor(ends))
    ended = lengths[~truncated] if not truncated.all() else torch.zeros(1)
    spread = group_std(known, rollouts.group_ids[~total.isnan()])
    mask = rollouts.response_mask
    metrics = {
        "reward": float(known.mean()) if len(known) else 0.0,
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
        "frac_reward_zero_std": float((spread < 1e-8).float().mean()) if len(spread) else 1.0,
        "completions/mean_terminated_length": float(ended.mean()),
        "completions/min_terminated_length": float(ended.min()),
        "completions/max_terminated_length": float(ended.max()),
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
    stds = [values[group_ids == group].std(correction=0) for group in group_ids.unique()]
    return torch.stack(stds) if stds else values.new_zeros(0)


def importance_ratios(rollouts: Rollouts, *, of_sequences: bool) -> dict[str, float]:
    """Ratios of the policy to the engine that sampled, of complete responses or of tokens, by TRL's names.

    They are those before any correction truncates or masks them. Empty where the engine gave no log-probabilities.
    """
    if rollouts.sampled_log_probs is None:
        return {}
    mask = rollouts.response_mask
    gap = (rollouts.log_probs - rollouts.sampled_log_probs).masked_fill(~mask, 0.0)
    ratios = gap.sum(1).exp() if of_sequences else gap[mask].exp()
    if not len(ratios):
        return {}
    prefix = SAMPLING_IMPORTANCE_RATIO.removesuffix("mean")
    values = {"min": ratios.min(), "mean": ratios.mean(), "max": ratios.max()}
    return {prefix + name: float(value) for name, value in values.items()}


def logged_by_rewards(infos: Sequence[dict[str, Any]], prefix: str) -> dict[str, float]:
    """Means of the metrics that reward functions have logged under `prefix`."""
    names = dict.fromkeys(name for info in infos for name in info if name.startswith(prefix))
    values = {name: [float(info[name]) for info in infos if name in info] for name in names}
    return {name.removeprefix(prefix): math.fsum(some) / len(some) for name, some in values.items()}
