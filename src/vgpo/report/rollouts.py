"""What a report shows of the rollouts: a few groups in full, and the focus curve over all late rollouts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgpo.focus.statistics import NUM_DECILES, focus_by_decile
from vgpo.pages import embed_json
from vgpo.pages.images import embed_image
from vgpo.pages.texts import MAX_TEXT_CHARACTERS, MAX_TOKEN_CHARACTERS, MAX_TOKENS, rounded, truncate
from vgpo.training.records import RolloutRecord

MIN_STEPS = 6  # of which groups are kept, evenly over the run, if so many were logged; at most twice as many
LATE_SHARE = 0.25

Group = list[RolloutRecord]


@dataclass
class RolloutSummary:
    """One pass over a run's rollouts, in memory that does not grow with their number."""

    num_rollouts: int = 0
    last_step: int = 0
    # step -> the rollouts of its first group, of every `stride`-th step that was logged and of the newest one
    groups: dict[int, Group] = field(default_factory=dict)
    ordinals: dict[int, int] = field(default_factory=dict)  # step -> how many were logged before it, of those kept
    num_steps: int = 0
    stride: int = 1
    # step -> correct -> [sums over rollouts, counts] per decile of the response
    deciles: dict[int, dict[bool, list[list[float]]]] = field(default_factory=dict)

    def add(self, record: RolloutRecord) -> None:
        self.num_rollouts += 1
        self.last_step = max(self.last_step, record.step)
        if record.step not in self.groups:
            self.begin_step(record.step)
        group = self.groups[record.step]
        if not group or group[0].group == record.group:
            group.append(record)
        if record.focus and record.correct is not None:
            self.add_deciles(record.step, record.correct, focus_by_decile(record.focus))

    def begin_step(self, step: int) -> None:
        """Make room for the first group of a step."""
        self.groups[step], self.ordinals[step] = [], self.num_steps
        self.num_steps += 1
        if len(self.groups) > 2 * MIN_STEPS + 1:
            self.stride *= 2
        for other in [one for one, place in self.ordinals.items() if place % self.stride and one != step]:
            del self.groups[other], self.ordinals[other]

    def add_deciles(self, step: int, correct: bool, means: list[float | None]) -> None:
        empty = {outcome: [[0.0] * NUM_DECILES, [0.0] * NUM_DECILES] for outcome in (True, False)}
        sums, counts = self.deciles.setdefault(step, empty)[correct]
        for decile, mean in enumerate(means):
            if mean is not None:
                sums[decile] += mean
                counts[decile] += 1

    def focus_curves(self) -> dict[str, Any] | None:
        """Return the mean focus per decile over the last quarter of the steps, None if nothing was stored."""
        first_step = int(self.last_step * (1 - LATE_SHARE)) + 1 if self.last_step else 0
        late = [outcomes for step, outcomes in self.deciles.items() if step >= first_step]
        if not late:
            return None
        curves = {}
        for name, outcome in (("correct", True), ("wrong", False)):
            sums = [sum(step[outcome][0][d] for step in late) for d in range(NUM_DECILES)]
            counts = [sum(step[outcome][1][d] for step in late) for d in range(NUM_DECILES)]
            values = [round(s / n, 4) if n else None for s, n in zip(sums, counts, strict=True)]
            curves[name] = {"values": values, "num_rollouts": int(max(counts))}
        return {"first_step": first_step, "last_step": self.last_step, **curves}

    def by_priority(self) -> list[Group]:
        """The kept groups: the newest, the first, then from new to old."""
        steps = sorted(self.groups, reverse=True)
        return [self.groups[step] for step in [*steps[:1], *steps[1:][-1:], *steps[1:-1]]]


def summarise_rollouts(records: Iterable[RolloutRecord]) -> RolloutSummary:
    summary = RolloutSummary()
    for record in records:
        summary.add(record)
    return summary


def fit_rollouts(folder: Path, summary: RolloutSummary, images: dict[str, Any], budget: int) -> list[Any]:
    """Return the rollouts of as many groups as fit, by step; puts their images into `images` by name.

    A group that does not fit is left out, but for the newest one, of which the first rollouts that fit are shown.

    Args:
        folder: the run folder, which has the images.
        summary: the run's rollouts.
        images: images of the report so far, name -> `embed_image`; extended in place.
        budget: bytes that this run's rollouts and new images may take in the page.
    """
    fitting: list[Any] = []
    for place, group in enumerate(summary.by_priority()):
        for part in [group] if place else [[record] for record in group]:
            entries = [rollout_entry(record) for record in part]
            new = images_of(folder, part, images)
            size = len(embed_json(entries)) + len(embed_json(new))
            if size <= budget:
                budget -= size
                images.update(new)
                fitting += entries
    return sorted(fitting, key=lambda entry: entry["step"])


def images_of(folder: Path, records: Sequence[RolloutRecord], known: Mapping[str, Any]) -> dict[str, Any]:
    """The images of rollouts by name, without those that are known."""
    names = {Path(name).stem: name for record in records for name in record.media}
    return {stem: embed_image(folder, name) for stem, name in names.items() if stem not in known}


def rollout_entry(record: RolloutRecord) -> dict[str, Any]:
    """Return what the page shows of a record: long texts truncated, numbers rounded, images by name.

    Focus and both factors are None where they were not measured: a run without shaping has none. `correct` is None
    where the accuracy reward gave no number.
    """
    focus, token_factor = rounded(record.focus or []), record.per_token("token_factor")
    return {
        "step": record.step,
        "group": record.group,
        "row": record.row,
        "correct": record.correct,
        "question": truncate(record.problem, MAX_TEXT_CHARACTERS),
        "reference": truncate("" if record.answer is None else str(record.answer), MAX_TEXT_CHARACTERS),
        "images": [Path(name).stem for name in record.media],
        "tokens": [truncate(token, MAX_TOKEN_CHARACTERS) for token in record.tokens[:MAX_TOKENS]],
        "num_tokens": len(record.tokens),
        "focus": focus if any(rho is not None for rho in focus) else None,
        "gate": [int(bool(gated)) for gated in (record.per_token("gate") or [])[:MAX_TOKENS]],
        "token_factor": None if token_factor is None else rounded(token_factor),
        "rollout_factor": record.per_rollout("rollout_factor"),
        "advantage": record.advantage,
        "token_advantages": None if record.token_advantages is None else rounded(record.token_advantages),
        "rewards": {truncate(name, MAX_TOKEN_CHARACTERS): value for name, value in record.rewards.items()},
    }
