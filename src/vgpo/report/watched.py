"""A run folder that is looked at again and again while a trainer, in another process, writes it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from vgpo.metric_names import ALARM_PREFIX
from vgpo.report.data import alarms_of, draw_charts, drop_abandoned_steps, with_accuracy
from vgpo.report.rollouts import rollout_entry
from vgpo.run.choice import newest_checkpoint
from vgpo.run.folder import SUMMARY, RunFolder, parse_metrics
from vgpo.run.records import Finished, Interrupted
from vgpo.run.storage import last_complete_line
from vgpo.run.tail import Tail

RECENT = 50  # logged lines that throughput is measured over
SILENCE = 60.0  # seconds without a line that are not reported

T = TypeVar("T")


class Cached(Generic[T]):
    """The result of `read` for the file `path`, read again when the file has changed."""

    def __init__(self, path: Path, read: Callable[[], T]) -> None:
        self.path = path
        self.read = read
        self._signature: tuple[int, int, int] | None = None
        self._value: T | None = None

    def get(self) -> T | None:
        """None while there is no file."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._signature, self._value = None, None
            return None
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if signature != self._signature:
            self._signature, self._value = signature, self.read()
        return self._value


@dataclass(frozen=True)
class Throughput:
    """How fast the last lines came, in wall-clock time, with evaluations and checkpoints in it.

    seconds_per_step, tokens_per_second: of prompts and responses; None where two lines are lacking.
    longest: seconds, of the longest wait between two lines; None where no wait is known.
    """

    seconds_per_step: float | None
    tokens_per_second: float | None
    longest: float | None


class WatchedRun:
    """The state of a run by its folder; `read` brings it up to date and reads what was appended only.

    Attributes:
        lines: the metrics lines, without those of steps that were repeated.
        charts: what the page would draw of them, as in `report_data`.
        alarms: those of `alarms_of`, with `holds`: whether the newest line has it.
        rollout: the rollout stored last, as in `rollout_entry`, or None.
        config, evaluation: as in their files; empty if there is none yet.
        interrupted: the mark that an error or a signal has ended the run, or None.
        finished: the mark of a finished run whose final weights are there, or None.
        checkpoint: step of the newest complete checkpoint and the time of its end (seconds since 1970), or None.
        has_final: whether the final weights are there.
    """

    def __init__(self, path: Path | str) -> None:
        self.folder = RunFolder(Path(path))
        self.lines: list[dict[str, Any]] = []
        self.charts: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []
        self.rollout: dict[str, Any] | None = None
        self.config: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.interrupted: Interrupted | None = None
        self.finished: Finished | None = None
        self.has_final = False
        self.resumed_from: list[int] = []
        self.checkpoint: tuple[int, float] | None = None
        self._started: float | None = None  # when it began or was last resumed, in seconds since 1970
        self._drawn = True  # whether charts and alarms are those of `lines`
        self._metrics = Tail(self.folder.metrics_path, parse_metrics)
        self._rollout = Cached(self.folder.rollouts_path, lambda: last_rollout(self.folder))
        self._config = Cached(self.folder.config_path, self.folder.read_config)
        self._environment = Cached(self.folder.environment_path, self.folder.read_environment)
        self._evaluation = Cached(self.folder.evaluation_path, self.folder.read_evaluation)
        self._interrupted = Cached(self.folder.interrupted_path, self.folder.read_interrupted)
        self._finished = Cached(self.folder.finished_path, self.folder.read_finished)
        self._resumes = Cached(self.folder.resumes_path, self.folder.read_resumes)

    def read(self) -> None:
        """Look at every file again.

        Raises:
            RunFolderError: a file is broken; names it.
        """
        self.config = self._config.get() or {}
        self.evaluation = self._evaluation.get() or {}
        self.interrupted = self._interrupted.get()
        self.finished = self._finished.get()
        self.has_final = self.folder.final_path.is_dir()
        resumes, environment = self._resumes.get() or [], self._environment.get()
        self.resumed_from = [resumed.step for resumed in resumes]
        starts = [start.started for start in (environment, *resumes) if start is not None]
        self._started = datetime.fromisoformat(starts[-1]).timestamp() if starts else None
        self.rollout = self._rollout.get()
        self.checkpoint = newest_checkpoint(self.folder.checkpoints_path)
        self._read_metrics()

    def _read_metrics(self) -> None:
        for line in self._metrics.read(self._forget_lines):
            self.lines.append(line)
            self._drawn = False
        if self._drawn:
            return
        self.lines = drop_abandoned_steps(self.lines)
        self.charts = draw_charts([with_accuracy(self.lines, self.config)])
        holding = [name for name, value in self.last_line.items() if value]
        self.alarms = [{**alarm, "holds": ALARM_PREFIX + alarm["name"] in holding} for alarm in alarms_of(self.lines)]
        self._drawn = True

    def _forget_lines(self) -> None:
        self.lines.clear()
        self._drawn = False

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
        if self.interrupted is not None or self.finished is not None:
            return True
        evaluates = self.config.get("eval_data") is not None and not self.ended_early
        return self.training_is_over and (not evaluates or self.evaluation.get("after") is not None)

    @property
    def ended_early(self) -> bool:
        # What epochs make is an estimate: a step or two short of it is not an early end.
        return self.training_is_over and self.step < 0.99 * (self.planned_steps or 0)

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the complete run: `max_steps`, or how many its epochs make at the throughput so far."""
        if (self.config.get("max_steps") or -1) > 0:
            return self.config["max_steps"]
        epochs, epoch = self.config.get("num_train_epochs"), self.last_line.get("epoch")
        return round(self.last_line["step"] * epochs / epoch) if epochs and epoch else None

    def throughput(self) -> Throughput:
        return throughput_of([line for line in self.lines[-RECENT - 1 :] if SUMMARY not in line], self.resumed_from)

    def seconds_since_log(self, now: float) -> float | None:
        """Seconds since the last sign of life, a line or a start; None if neither says when it was.

        now: seconds since 1970.
        """
        signs = [self._started, self.lines[-1].get("time") if self.lines else None]
        known = [sign for sign in signs if sign is not None]
        return now - max(known) if known else None

    def is_stalled(self, now: float) -> bool:
        """Whether the run has logged nothing for far longer than between earlier lines. now: seconds since 1970."""
        silence, longest = self.seconds_since_log(now), self.throughput().longest
        return silence is not None and longest is not None and silence > max(SILENCE, 3 * longest)


def throughput_of(lines: Sequence[dict[str, Any]], resumed_from: Sequence[int]) -> Throughput:
    """The throughput over these lines, without the time between an interruption and its resume."""
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
    return Throughput(
        seconds_per_step=sum(waits) / steps if steps else None,
        tokens_per_second=tokens / seconds if seconds > 0 else None,
        longest=max(waits, default=None),
    )


def last_rollout(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.rollouts_path
    _, line = last_complete_line(path)
    return rollout_entry(folder.rollouts.parse(line, f"{path}, last line")) if line else None
