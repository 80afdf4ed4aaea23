"""Execute the runs of a study: one process per run, `jobs` at a time, each on its own device."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vgpo.run.storage import last_complete_line, parse_object
from vgpo.study.file import PlannedRun, Study, write_recipe
from vgpo.study.folder import StudyRun
from vgpo.study.suite import StudySuite
from vgpo.terminal import draws_bars, say

POLL_SECONDS = 0.5
INTERRUPTED = 128 + signal.SIGINT


@dataclass
class Child:
    """A running process of a run."""

    run: PlannedRun
    files: StudyRun
    process: subprocess.Popen[bytes]
    started: float
    slot: int  # 0 to jobs - 1, unique among active runs


@dataclass
class Outcomes:
    """Outcomes of the runs: failed ones with their exit status, and the status of a stop."""

    failed: list[tuple[PlannedRun, int]] = field(default_factory=list)
    stopped: int | None = None


@dataclass
class Workers:
    """Processes that share the machine, and the outcomes of those that have ended.

    Attributes:
        out: Folder of the study.
        written: By setting, fields of the recipe that name files of the study.
        jobs: Number of concurrent runs.
        lock: Descriptor that they hold until they end.
        console: Where their progress is printed.
        suite: What each is evaluated on after its training, if anything.
        sets: By setting and name, further held-out sets that are files of the study.
        active: Running processes.
        outcomes: Of those that have ended.
    """

    out: Path
    written: Mapping[str, Mapping[str, str]]
    jobs: int
    lock: int
    console: Console
    suite: StudySuite | None = None
    sets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    active: list[Child] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=Outcomes)

    def run_all(self, todo: Sequence[PlannedRun]) -> Outcomes:
        """Keep `jobs` runs active until all have ended; a failed run does not stop the others."""
        waiting = list(todo)
        with terminable(), progress_bar(self.console) as bar:
            task = bar.add_task("all runs", total=len(todo))
            try:
                while waiting or self.active:
                    self.launch_some(waiting)
                    time.sleep(POLL_SECONDS)
                    self.collect()
                    ended = len(todo) - len(waiting) - len(self.active)
                    under_way = sum(share_done(child) for child in self.active)
                    names = ", ".join(child.run.name for child in self.active)
                    bar.update(task, completed=ended + under_way, description=names or "all runs")
            except (KeyboardInterrupt, SystemExit) as stop:
                self.outcomes.stopped = stop.code if isinstance(stop, SystemExit) else INTERRUPTED  # type: ignore[assignment]
                say(self.console, "stopping: active runs save their step; another signal ends them immediately")
            finally:
                end_all(self.active)
        return self.outcomes

    def launch_some(self, waiting: list[PlannedRun]) -> None:
        """Start the next waiting run in each free slot."""
        free = sorted(set(range(self.jobs)) - {child.slot for child in self.active})
        for slot in free[: len(waiting)]:
            self.active.append(self.launch(waiting.pop(0), slot))

    def launch(self, planned: PlannedRun, slot: int) -> Child:
        """Start a run on the device of its slot, with its output in its log."""
        folder = folder_of(self.out, planned)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_recipe(folder.recipe_path, planned.values)  # over that of a run that never began
        if planned.held_out_sets:
            write_recipe(folder.held_out_path, {**planned.held_out_sets, **self.sets[planned.setting]})
        if self.suite is not None:
            folder.unseal()  # of a run that was done before the study had a suite
            write_recipe(folder.suite_path, self.suite.values)
        words = [word for key, path in self.written[planned.setting].items() for word in (f"--{key}", path)]
        with folder.log_path.open("ab") as log:
            process = subprocess.Popen(
                [*command_of(planned, folder, self.jobs), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment_of(slot, self.jobs, all_devices=bool(planned.launch)),
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C reaches this process, which forwards it
            )
        return Child(planned, folder, process, time.monotonic(), slot)

    def collect(self) -> None:
        """Remove ended runs from the list, and print their outcomes."""
        for child in [child for child in self.active if child.process.poll() is not None]:
            self.active.remove(child)
            status, seconds = child.process.returncode, time.monotonic() - child.started
            if status == 0 and child.files.is_done:
                say(self.console, f"{child.run.name}: done in {seconds:.0f} s")
            else:
                self.outcomes.failed.append((child.run, status))
                say(self.console, f"{child.run.name}: failed after {seconds:.0f} s, exit status {status}")


def folder_of(out: Path, planned: PlannedRun) -> StudyRun:
    return StudyRun(out / "runs" / planned.name)


def unfinished(study: Study, out: Path) -> list[PlannedRun]:
    """The runs that are not done, or lack the scores on the benchmarks of the study."""
    return [
        planned
        for planned in study.runs
        if not (one := folder_of(out, planned)).is_done or (study.suite and not one.evaluation.scores_path.is_file())
    ]


def command_of(planned: PlannedRun, folder: StudyRun, jobs: int) -> list[str]:
    start = ["--start"] if planned.is_start else []
    launch = ["--launch", shlex.join(planned.launch)] if planned.launch else []
    return [sys.executable, "-m", "vgpo.cli", "compare-run", str(folder.path), "--jobs", str(jobs), *start, *launch]


def environment_of(slot: int, jobs: int, *, all_devices: bool = False) -> dict[str, str]:
    """A share of the cores, and one GPU: with several, a single-process run would split its batches over them."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    devices = [] if all_devices else visible_gpus()
    device = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
    return {**os.environ, "OMP_NUM_THREADS": threads, "NO_COLOR": "1", "COLUMNS": "120", **device}


def visible_gpus() -> list[str]:
    """Names of the visible GPUs in CUDA_VISIBLE_DEVICES; empty if there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def share_done(child: Child) -> float:
    """Share of a run's training that is done, in [0, 1); 0 where its length is not known."""
    metrics = child.files.folder.metrics_path
    _, line = last_complete_line(metrics)
    if not line or not child.run.max_steps:
        return 0.0
    return min(parse_object(line, str(metrics))["step"] / (child.run.max_steps + 1), 1.0)


def end_all(active: Sequence[Child]) -> None:
    """Let active runs finish and save their step; another signal ends them immediately."""
    for child in active:
        child.process.terminate()
    try:
        for child in active:
            child.process.wait()
    except (KeyboardInterrupt, SystemExit):
        for child in active:
            child.process.kill()
            child.process.wait()


@contextmanager
def terminable() -> Iterator[None]:
    """Inside the block SIGTERM raises SystemExit(143), so that children are terminated too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not draws_bars(console),
        # Estimate the remaining time from all runs so far, not from the last half minute.
        speed_estimate_period=86_400,
    )
