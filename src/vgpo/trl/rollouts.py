"""Rollouts as records for people: text, rewards, and what the shaping made of each token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

RolloutWriter = Callable[[list[dict[str, Any]]], None]


def rollout_records(
    *,
    step: int,
    batch: Mapping[str, Any],
    dataset_rows: Sequence[Mapping[str, Any]],
    reward_names: Sequence[str],
    focus: Tensor | None,
    trace: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    """One record for each row of `dataset_rows`, the first rows of `batch`.

    Args:
        step: the optimiser step that the rollouts are trained on, from 1.
        batch: a micro-batch with ids and masks of prompts and completions, `visual_rows`, `scalar_advantages`,
            `rewards`, `group_ids` and `row_index`.
        dataset_rows: the data-set row of each rollout; what it lacks is read off the batch, or left out.
        reward_names: names of the columns of `batch["rewards"]`.
        focus: rho (B, T), or None where it was not measured.
        trace: what the shaping left, (B, T) or (B,).
        tokenizer: decodes token by token.
    """
    records = []
    for i, row in enumerate(dataset_rows):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
        tokens = batch["completion_mask"][i].bool()
        ids = batch["completion_ids"][i][tokens].tolist()
        record = {
            "step": step,
            "group": int(batch["group_ids"][i]),
            "row": int(batch["row_index"][i]),
            "id": row.get("id"),
            "problem": row["problem"] if "problem" in row else tokenizer.decode(prompt, skip_special_tokens=True),
            "answer": row.get("answer"),
            "images": list(row.get("images") or filter(None, [row.get("image")])),
            "completion": tokenizer.decode(ids, skip_special_tokens=True),
            "tokens": [tokenizer.decode([token]) for token in ids],
            "focus": None if focus is None or not batch["visual_rows"][i] else focus[i][tokens].tolist(),
            "advantage": float(batch["scalar_advantages"][i]),
            "rewards": dict(zip(reward_names, batch["rewards"][i].tolist(), strict=True)),
        }
        for name, values in trace.items():
            record[name] = values[i][tokens].tolist() if values.ndim == 2 else float(values[i])
        records.append(record)
    return records
