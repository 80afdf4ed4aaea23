"""From a batch of tensors to shaped advantages, in the order in which every host goes: signals, groups, shaping."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vgpo.equations import focus_score
from vgpo.focus import focus_statistics
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
    """Shape the advantages (B,), with the statistics of visual focus where similarity is known."""
    shaped = shaping.shape(advantages, signals)
    if signals.similarity is None:
        return shaped
    focus = focus_score(signals.similarity, signals.response_mask, "paper")
    measured = focus_statistics(focus, signals.response_mask, signals.visual_rows)
    return replace(shaped, statistics={**shaped.statistics, **measured})


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
