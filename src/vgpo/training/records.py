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
    own_tokens: Tensor,
    focus: Tensor | None,
    diagnostics: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    """One record for each row of `dataset_rows`, the first rows of `batch`.

    Args:
        step: the optimiser step that the rollouts are trained on, from 1.
        batch: a micro-batch with ids and masks of prompts and completions, `visual_rows`, `scalar_advantages`,
            `rewards`, `group_ids` and `row_index`.
        dataset_rows: the data-set row of each rollout; what it lacks is read off the batch, or left out.
        reward_names: names of the columns of `batch["rewards"]`.
        own_tokens: the tokens that the policy is trained on; bool (B, T). The others, a tool's output and responses
            that were cut off and masked, are in the records too, with None for what is measured of a token.
        focus: rho (B, T), or None where it was not measured.
        diagnostics: what the shaping left, (B, T) or (B,).
        tokenizer: decodes token by token.
    """
    records = []
    for i, row in enumerate(dataset_rows):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()]
        ids = response_ids(batch["completion_ids"][i], batch["completion_mask"][i], tokenizer.pad_token_id)
        own = own_tokens[i].tolist()[: len(ids)]
        record = {
            "step": step,
            "group": int(batch["group_ids"][i]),
            "row": int(batch["row_index"][i]),
            "id": row.get("id"),
            "problem": row["problem"] if "problem" in row else tokenizer.decode(prompt, skip_special_tokens=True),
            "answer": row.get("answer"),
            "images": list(row.get("images") or filter(None, [row.get("image")])),
            "completion": tokenizer.decode(ids, skip_special_tokens=True),
            "token_ids": ids,
            "tokens": [tokenizer.decode([token]) for token in ids],
            "focus": None if focus is None or not batch["visual_rows"][i] else of_own(focus[i], own),
            "advantage": float(batch["scalar_advantages"][i]),
            "rewards": dict(zip(reward_names, batch["rewards"][i].tolist(), strict=True)),
        }
        for name, values in diagnostics.items():
            record[name] = of_own(values[i], own) if values.ndim == 2 else float(values[i])
        records.append(record)
    return records


def response_ids(padded: Tensor, mask: Tensor, padding: int) -> list[int]:
    """The tokens of a response (T,), also of one that was cut off and masked, which ends in no padding."""
    ids: list[int] = padded.tolist()
    length = int(mask.sum()) or max((i + 1 for i, token in enumerate(ids) if token != padding), default=0)
    return ids[:length]


def of_own(values: Tensor, own: Sequence[bool]) -> list[Any]:
    """The values of the policy's own tokens, None at the others."""
    return [value if known else None for value, known in zip(values.tolist(), own, strict=False)]
