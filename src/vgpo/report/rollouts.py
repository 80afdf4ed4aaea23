"""What a report shows of the rollouts: a few of them whole, and the focus curve over all late ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgpo.focus.statistics import NUM_DECILES, focus_by_decile
from vgpo.pages import embed_json
from vgpo.pages.images import embed_image
from vgpo.pages.texts import MAX_TEXT_CHARACTERS, MAX_TOKEN_CHARACTERS, MAX_TOKENS, rounded, truncate

NUM_SHOWN = 6  # correct ones and wrong ones each
LATE_SHARE = 0.25


@dataclass
class RolloutSummary:
    """One pass over a run's rollouts, in memory that does not grow with their number."""

    num_rollouts: int = 0
    last_step: int = 0
    newest: dict[bool, dict[tuple[int, int], dict[str, Any]]] = field(default_factory=lambda: {True: {}, False: {}})
    # step -> correct -> [sums over rollouts, counts] per decile of the response
    deciles: dict[int, dict[bool, list[list[float]]]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        correct = is_correct(record["rewards"])
        self.num_rollouts += 1
        self.last_step = max(self.last_step, record["step"])
        kept = self.newest[correct]
        kept.setdefault((record["step"], record["group"]), record)
        if len(kept) > NUM_SHOWN:
            del kept[next(iter(kept))]
        if record["focus"]:
            self.add_deciles(record["step"], correct, focus_by_decile(record["focus"]))

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

    def shown(self) -> list[dict[str, Any]]:
        """Return the newest rollouts, newest step first, a group's correct one before its wrong one."""
        chosen = [
            (-step, group, not correct, record)
            for correct, kept in self.newest.items()
            for (step, group), record in kept.items()
        ]
        return [record for *_, record in sorted(chosen, key=lambda entry: entry[:3])]


def summarise_rollouts(records: Iterable[dict[str, Any]]) -> RolloutSummary:
    summary = RolloutSummary()
    for record in records:
        summary.add(record)
    return summary


def is_correct(rewards: Mapping[str, float | None]) -> bool:
    """Whether the accuracy reward (else the first one) is above one half."""
    names = [name for name in rewards if "accuracy" in name] or list(rewards)
    return bool(names) and (rewards[names[0]] or 0.0) > 0.5


def fit_rollouts(folder: Path, summary: RolloutSummary, images: dict[str, Any], budget: int) -> list[Any]:
    """Return the rollouts to show, as many as fit; puts their pictures into `images` by name.

    Args:
        folder: the run folder, where the pictures lie.
        summary: the run's rollouts.
        images: pictures of the report so far, name -> `embed_image`; extended in place.
        budget: bytes that this run's rollouts and new pictures may take in the page.
    """
    fitting = []
    for record in summary.shown():
        entry = rollout_entry(record)
        new = {
            Path(name).stem: embed_image(folder, name) for name in record["images"] if Path(name).stem not in images
        }
        size = len(embed_json(entry)) + len(embed_json(new))
        if size <= budget:
            budget -= size
            images.update(new)
            fitting.append(entry)
    return fitting


def rollout_entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a record: long texts cut, numbers rounded, pictures by name.

    Focus and both factors are None where they were not measured: a run without shaping has none.
    """
    focus = rounded(record["focus"] or [])
    return {
        "step": record["step"],
        "group": record["group"],
        "row": record["row"],
        "correct": is_correct(record["rewards"]),
        "question": truncate(record["problem"], MAX_TEXT_CHARACTERS),
        "gold": truncate("" if record["answer"] is None else str(record["answer"]), MAX_TEXT_CHARACTERS),
        "images": [Path(name).stem for name in record["images"]],
        "tokens": [truncate(token, MAX_TOKEN_CHARACTERS) for token in record["tokens"][:MAX_TOKENS]],
        "num_tokens": len(record["tokens"]),
        "focus": focus if any(rho is not None for rho in focus) else None,
        "gate": [int(bool(gated)) for gated in record.get("gate", [])[:MAX_TOKENS]],
        "token_factor": rounded(record["token_factor"]) if "token_factor" in record else None,
        "rollout_factor": record.get("rollout_factor"),
        "advantage": record["advantage"],
        "rewards": {truncate(name, MAX_TOKEN_CHARACTERS): value for name, value in record["rewards"].items()},
    }
