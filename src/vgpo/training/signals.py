"""From a batch of tensors to shaped advantages, in the order in which every host goes: signals, groups, shaping."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vgpo.equations import focus_score
from vgpo.focus import focus_statistics
from vgpo.metric_names import SHAPING_EFFECTIVE_SAMPLE_SIZE, SHAPING_NEGATIVE_MASS, SHAPING_POSITIVE_MASS
from vgpo.ratio import Ratio
from vgpo.shaping import Shaped, Shaping, Signals
from vgpo.training.collective import Collective

ALWAYS = ("response_mask", "group_ids", "visual_rows")  # tensors that every shaping takes


def required_signals(shaping: Shaping, *, measure_focus: bool) -> frozenset[str]:
    """Names of the optional `Signals` that a host computes: those of the shaping, and the similarity to log focus."""
    return shaping.signals | ({"similarity"} if measure_focus else frozenset())


def group_numbers(keys: Sequence[Hashable], device: torch.device) -> Tensor:
    """Numbers of the groups that rollouts belong to, int64 (B,): equal keys have one number, from 0 in order."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.int64, device=device)


def signals_of(tensors: Mapping[str, Tensor], required: frozenset[str]) -> Signals:
    """The signals of a batch, by their names in `Signals`; other tensors of the batch are left out.

    Raises:
        ValueError: a required signal, or a tensor that every shaping takes, is missing; names it.
    """
    missing = sorted({*ALWAYS, *required} - tensors.keys())
    if missing:
        raise ValueError(
            f"The batch has no {', '.join(missing)}; found {sorted(tensors)}. The host has to compute them before it "
            "shapes the advantages."
        )
    return Signals(**{name: tensors[name] for name in (*ALWAYS, *required)})


def shape_batch(shaping: Shaping, advantages: Tensor, signals: Signals) -> Shaped:
    """Shape the advantages (B,), with statistics of the change, and of visual focus where similarity is known."""
    shaped = shaping.shape(advantages, signals)
    measured = change_statistics(advantages, shaped.advantages, signals.response_mask)
    if signals.similarity is not None:
        focus = focus_score(signals.similarity, signals.response_mask, "paper")
        measured |= focus_statistics(focus, signals.response_mask, signals.visual_rows)
    return replace(shaped, statistics={**shaped.statistics, **measured})


@torch.no_grad()
def change_statistics(advantages: Tensor, shaped: Tensor, response_mask: Tensor) -> dict[str, Ratio]:
    """How a shaping changes the weights of tokens whose advantage is not 0.

    With f = A^V / A at each of these N tokens: the effective sample size (sum f)^2 / (N sum f^2), and the mass
    sum |A^V| / sum |A| of positive and of negative advantages. All are 1 without a shaping. The masses add up over
    calls; of the effective sample sizes the mean is taken, each with the weight N of its call.

    Args:
        advantages: A (B,).
        shaped: A^V (B, T).
        response_mask: bool (B, T).
    """
    dtype = torch.promote_types(torch.promote_types(advantages.dtype, shaped.dtype), torch.float32)
    plain = advantages.to(dtype)[:, None].expand(shaped.shape)
    shaped = shaped.to(dtype)
    counted = response_mask & (plain != 0)
    factor = torch.where(counted, shaped / torch.where(counted, plain, 1), 0)
    squares = factor.square().sum()
    total = factor.sum()
    size = total * (total / torch.where(squares > 0, squares, 1))  # in tokens; exactly N without a shaping

    def mass(kept: Tensor) -> Ratio:
        return Ratio(torch.where(kept, shaped, 0).abs().sum(), torch.where(kept, plain, 0).abs().sum())

    return {
        SHAPING_EFFECTIVE_SAMPLE_SIZE: Ratio(size, counted.sum()),
        SHAPING_POSITIVE_MASS: mass(response_mask & (plain > 0)),
        SHAPING_NEGATIVE_MASS: mass(response_mask & (plain < 0)),
    }


def shape_across(shaping: Shaping, advantages: Tensor, signals: Signals, collective: Collective) -> Shaped:
    """As `shape_batch`, over the rollouts of all processes; advantages and diagnostics are those of this process.

    Called by all processes at once, with as many rollouts each.
    """
    gather = collective.gather_rows
    everywhere = Signals(**{name: gather(value) for name, value in vars(signals).items() if value is not None})
    shaped = shape_batch(shaping, gather(advantages), everywhere)
    num_rows, width = signals.response_mask.shape
    first = collective.rank * num_rows

    def of_this_process(value: Tensor) -> Tensor:
        rows = value[first : first + num_rows]
        return rows[:, :width] if rows.ndim == 2 else rows

    diagnostics = {name: of_this_process(value) for name, value in shaped.diagnostics.items()}
    return replace(shaped, advantages=of_this_process(shaped.advantages), diagnostics=diagnostics)
