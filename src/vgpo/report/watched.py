"""A run folder that is looked at again and again while a trainer, in another process, writes it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vgpo.report.data import alarms_of, draw_charts, drop_abandoned_steps
from vgpo.report.rollouts import rollout_entry
from vgpo.report.run_folder import SUMMARY, RunFolder
from vgpo.report.storage import last_complete_line, parse_object, read_object, read_records
from vgpo.report.tail import Tail

RECENT = 50  # logged lines by which the pace is judged
SILENCE = 60.0  # seconds without a line that are nothing to speak of

T = TypeVar("T")


class Cached(Generic[T]):
    """What `read` makes of a file, made anew when the file has changed."""

    def __init__(self, path: Path, read: Callable[[Path], T]) -> None:
        self.path = path
        self.read = read
        self._signature: tuple[int, int, int] | None = None
        self._value: T | None = None

    def get(self) -> T | None:
        """None while there is no file."""
        if not self.path.exists():
            self._signature, self._value = None, None
            return None
        stat = self.path.stat()
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if signature != self._signature:
            self._signature, self._value = signature, self.read(self.path)
        return self._value


@dataclass(frozen=True)
class Pace:
    """How fast the last lines came, in wall-clock time, with evaluations and checkpoints in it.

    seconds_per_step, tokens_per_second: of prompts and responses; None where two lines are lacking.
    longest: seconds, of the longest wait between two lines.
    """

    seconds_per_step: float | None
    tokens_per_second: float | None
    longest: float


class WatchedRun:
    """The state of a run by its folder; `read` brings it up to date and reads what was appended only.

    Attributes:
        lines: the metrics lines, without those of steps that were repeated.
        charts: what the page would draw of them, as of `report_data`.
        alarms: those of `alarms_of`, with `holds`: whether the newest line has it.
        rollout: the rollout stored last, as of `rollout_entry`, or None.
        config, evaluation: as they stand in their files; empty while there is none.
        checkpoint: step of the newest whole checkpoint and the time of its end (seconds since 1970), or None.
    """

    def __init__(self, path: Path | str) -> None:
        self.folder = RunFolder(Path(path))
        self.lines: list[dict[str, Any]] = []
        self.charts: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []
        self.rollout: dict[str, Any] | None = None
        self.config: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.resumed_from: list[int] = []
        self.checkpoint: tuple[int, float] | None = None
        self._metrics = Tail(self.folder.metrics_path)
        self._rollout = Cached(self.folder.rollouts_path, last_rollout)
        self._config = Cached(self.folder.path / "config.yaml", lambda path: self.folder.read_config())
        self._evaluation = Cached(self.folder.evaluation_path, read_object)
        self._resumes = Cached(self.folder.resumes_path, lambda path: [line["step"] for line in read_records(path)])

    def read(self) -> None:
        """Look at every file again.

        Raises:
            RunFolderError: a file is broken; names it.
        """
        self.config = self._config.get() or {}
        self.evaluation = self._evaluation.get() or {}
        self.resumed_from = self._resumes.get() or []
        self.rollout = self._rollout.get()
        self.checkpoint = newest_checkpoint(self.folder.checkpoints_path)
        self._read_metrics()

    def _read_metrics(self) -> None:
        kept = list(self.lines)
        new = list(self._metrics.read(kept.clear))
        if not new and len(kept) == len(self.lines):
            return
        self.lines = drop_abandoned_steps([*kept, *new])
        self.charts = draw_charts([self.lines])
        holding = [name for name, value in self.last_line.items() if value]
        self.alarms = [{**alarm, "holds": f"alarm/{alarm['name']}" in holding} for alarm in alarms_of(self.lines)]

    @property
    def begun(self) -> bool:
        """Whether there is a run at all."""
        return bool(self.config)

    @property
    def step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def last_line(self) -> dict[str, Any]:
        """The newest line that a step has logged; empty before the first one."""
        return next((line for line in reversed(self.lines) if SUMMARY not in line), {})

    @property
    def training_is_over(self) -> bool:
        """Whether the trainer has logged that it ended, early or not."""
        return bool(self.lines) and SUMMARY in self.lines[-1]

    @property
    def over(self) -> bool:
        """Whether nothing more is to come: a run that went to its end is evaluated after training."""
        evaluates = self.config.get("eval_data") is not None and not self.ended_early
        return self.training_is_over and (not evaluates or self.evaluation.get("after") is not None)

    @property
    def ended_early(self) -> bool:
        # What epochs make is an estimate: a step or two short of it is no early end.
        return self.training_is_over and self.step < 0.99 * (self.planned_steps or 0)

    @property
    def planned_steps(self) -> int | None:
        """Optimiser steps of the whole run: `max_steps`, or how many its epochs make by the pace so far."""
        if (self.config.get("max_steps") or -1) > 0:
            return self.config["max_steps"]
        epochs, epoch = self.config.get("num_train_epochs"), self.last_line.get("epoch")
        return round(self.last_line["step"] * epochs / epoch) if epochs and epoch else None

    def pace(self) -> Pace:
        return pace_of([line for line in self.lines[-RECENT - 1 :] if SUMMARY not in line], self.resumed_from)

    def silent_for(self, now: float) -> float | None:
        """Seconds since the last line where that is longer than a run of this pace would take; else None.

        now: seconds since 1970.
        """
        last = self.lines[-1].get("time") if self.lines else None
        if last is None or self.training_is_over:
            return None
        silence = now - last
        return silence if silence > max(SILENCE, 3 * self.pace().longest) else None


def pace_of(lines: Sequence[dict[str, Any]], resumed_from: Sequence[int]) -> Pace:
    """The pace over these lines; the time for which a run lay still before it was resumed does not count."""
    pairs = [
        (earlier, later)
        for earlier, later in itertools.pairwise(line for line in lines if line.get("time") is not None)
        if not any(earlier["step"] <= step < later["step"] for step in resumed_from)
    ]
    waits = [later["time"] - earlier["time"] for earlier, later in pairs]
    steps = sum(later["step"] - earlier["step"] for earlier, later in pairs)
    counted = [
        (wait, later["num_tokens"] - earlier["num_tokens"])
        for wait, (earlier, later) in zip(waits, pairs, strict=True)
        if earlier.get("num_tokens") is not None and later.get("num_tokens") is not None
    ]
    seconds, tokens = sum(wait for wait, _ in counted), sum(number for _, number in counted)
    return Pace(
        seconds_per_step=sum(waits) / steps if steps else None,
        tokens_per_second=tokens / seconds if seconds > 0 else None,
        longest=max(waits, default=0.0),
    )


def last_rollout(path: Path) -> dict[str, Any] | None:
    _, line = last_complete_line(path)
    return rollout_entry(parse_object(line, f"{path}, last line")) if line else None


def newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Step and time of the newest checkpoint with a manifest, which is what is written last into one."""
    manifests = [
        (path.parent.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*/manifest.json")
    ]
    whole = [(int(step), path) for step, path in manifests if step.isdecimal()]
    if not whole:
        return None
    step, path = max(whole)
    try:
        return step, path.stat().st_mtime
    except FileNotFoundError:  # deleted in between; the next look finds the one that took its place
        return None
