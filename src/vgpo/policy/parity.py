"""Parity: whether a trainer computes what the model computes, measured on the user's own checkpoint and prompts.

A trainer does not read a model as `model(...)` does. It pads rows, computes a prompt once for several responses,
projects states with a head of its own, and runs under autocast. Each of these can be wrong for a model that nobody has
tried, and then trains on wrong log-probabilities without a sign of it. So each is compared, before the first step,
with plain forward passes over single unpadded rows, and with the numbers from which `generate` sampled.

Two prompts with unlike images have two sampled responses each, of unlike lengths. The module knows a scoring pass with
and without shared prompts; how prompts are shared, it does not.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from vgpo.policy.measurement import (
    OPTIONAL,
    OWN_HEAD,
    RUN_TOWER,
    SCORING_PASS,
    SEPARATE_ROWS,
    STOP,
    Gap,
    Host,
    measure,
)
from vgpo.policy.probes import Probes

REMEDIES = {
    OWN_HEAD: "the log-probabilities are computed from the model's own logits, which takes the memory of the logits "
    "of all responses of a micro-batch",
    SEPARATE_ROWS: "each rollout computes its prompt itself",
    RUN_TOWER: "the vision tower runs in each pass",
    SCORING_PASS: "visual similarity comes from a scoring pass, not out of sampling",
}


class ParityError(RuntimeError):
    """The trainer does not compute what the model computes; the message says what was measured."""


@dataclass(frozen=True)
class Parity:
    """All that was measured, and what follows from it.

    Args:
        dtype: in which the model computes.
        gaps: the lines of the table; those of a remedy that was tried come with the remedy.
        own_head: whether log-probabilities come from the model's own logits.
        shares_prompts: whether rollouts share their prompt.
        seconds: that the measurement took.
    """

    dtype: str
    gaps: tuple[Gap, ...]
    own_head: bool
    shares_prompts: bool
    seconds: float

    def table(self) -> Table:
        """A short table for the start of a run."""
        title = f"parity ({self.dtype})"
        table = Table(title, "mean difference", "tolerance", "", box=None, title_justify="left", pad_edge=False)
        for gap in self.gaps:
            status = "ok" if gap.passes else "reported" if gap.remedy == OPTIONAL else gap.remedy
            note = f"{status}; {gap.note}" if gap.note else status
            table.add_row(gap.name, Text(gap.result), f"{gap.tolerance:.0e}" if gap.tolerance else "exact", note)
        return table

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for the run folder."""
        lines = [{**dataclasses.asdict(gap), "passes": gap.passes} for gap in self.gaps]
        for line in lines:
            line.update({name: None for name in ("mean", "largest") if line[name] != line[name]})  # no NaN in JSON
        return {**dataclasses.asdict(self), "gaps": lines}


def settle(
    host: Callable[[], Host],
    probes: Probes,
    *,
    strict: bool,
    use_own_head: Callable[[str], None],
    separate_rows: Callable[[str], None],
    run_tower: Callable[[str], None] | None = None,
) -> Parity:
    """Measure, apply the remedies that there are, and measure again what they change.

    Args:
        host: gives the model as it is run now.
        probes: the prompts.
        strict: any difference is an error.
        use_own_head: lets the model's own logits score; takes the reason.
        separate_rows: shares no prompts any more; takes the reason.
        run_tower: keeps no outputs of the vision tower any more; takes the reason; None for a host that keeps none.

    Raises:
        ParityError: a difference without a remedy, or any with `strict`.
    """
    start = time.monotonic()
    gaps, own_head = measure(host(), probes), False
    remedies = ((RUN_TOWER, run_tower), (OWN_HEAD, use_own_head), (SEPARATE_ROWS, separate_rows))
    for remedy, apply in remedies:
        failed = [gap for gap in gaps if gap.remedy == remedy and not gap.passes]
        if not failed or apply is None:
            continue
        if strict:
            break
        apply(f"{failed[0].name}: {failed[0].result}; {REMEDIES[remedy]}")
        own_head = own_head or remedy == OWN_HEAD
        again = {gap.name: gap for gap in measure(host(), probes)}
        gaps = [again.get(gap.name, gap) for gap in gaps]
        if own_head:  # there is no other head
            gaps = [replace(gap, remedy=STOP) if gap.remedy == OWN_HEAD else gap for gap in gaps]
    refuse(gaps, strict=strict)
    after = host()
    dtype = str(after.dtype).removeprefix("torch.")
    return Parity(dtype, tuple(gaps), own_head, after.share, time.monotonic() - start)


def refuse(gaps: Sequence[Gap], *, strict: bool) -> None:
    """Raise for lines that fail and have no remedy.

    Raises:
        ParityError: there are some; the message has all of them.
    """
    allowed = () if strict else (OPTIONAL, RUN_TOWER, SCORING_PASS, SEPARATE_ROWS)
    failed = [gap for gap in gaps if not gap.passes and gap.remedy not in allowed]
    if failed:
        lines = "\n".join(f"- {gap.name}: {gap.result}" for gap in failed)
        raise ParityError(
            "Parity check failed: the trainer does not compute what the model computes. Measured on two prompts of "
            f"the training data:\n{lines}\nTry another attn_implementation or version of transformers, or report the "
            "model family. parity: off skips this check."
        )
