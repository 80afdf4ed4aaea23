"""Parity check: does the trainer compute what the model computes, measured on the user's checkpoint and prompts?

A trainer does not just call `model(...)`. It pads rows, computes a prompt once for several responses, uses its own LM
head, and runs under autocast. Each of these can be wrong for an untested model, which then silently trains on wrong
log-probabilities. So each is compared, before the first step, with plain forward passes over single unpadded rows, and
with the probabilities from which `generate` sampled.

Two prompts with different images get two sampled responses each, of different lengths. This module only knows a
scoring pass with and without shared prompts, not how prompts are shared.
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
    SCORING_PASS: "visual similarity comes from a scoring pass, not from sampling",
}


class ParityError(RuntimeError):
    """The trainer does not compute what the model computes; the message has the measurements."""


@dataclass(frozen=True)
class Parity:
    """The measurements and their consequences.

    Args:
        dtype: compute dtype of the model.
        gaps: the lines of the table; those of an applied fallback name it.
        own_head: whether log-probabilities come from the model's own logits.
        shares_prompts: whether rollouts share their prompt.
        seconds: duration of the measurement.
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
        """JSON-serialisable, for the run folder."""
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
    """Measure, apply the available fallbacks, and measure again what they change.

    Args:
        host: returns the model in its current configuration.
        probes: the prompts.
        strict: treat any difference as an error.
        use_own_head: switches scoring to the model's own logits; takes the reason.
        separate_rows: disables shared prompts; takes the reason.
        run_tower: disables caching of vision tower outputs; takes the reason; None for a host without such a cache.

    Raises:
        ParityError: a difference without a fallback, or any with `strict`.
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
    """Raise if lines fail and have no fallback.

    Raises:
        ParityError: some lines do; the message lists all of them.
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
