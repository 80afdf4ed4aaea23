"""A campaign against runs: one fault each, then a resume, then a comparison with the run that nothing befell.

    python -m benchmarks.faults [--seeds 30] [--kinds kill truncate ...] [--out FOLDER]

Fault number n is drawn from seed n; the kinds take turns, and it strikes the run of training seed n mod 3: that of the
embedded model, 8 updates, 2 to a generation, with dynamic sampling and more than one epoch. Each start is a process of
its own, forked from one that has the libraries loaded; kills are SIGKILLs. The same command starts and resumes:
`vgpo train --config recipe.yaml --seed S --run_dir RUN --resume true`.

A fault is survived if the run ends as it should (by the signal, with a message, or not at all), nothing of a
checkpoint is lost, and the resumed run reaches its end. It is identical if weights, rollouts (byte by byte) and
metrics (all but times) are those of the clean run. With a planted NaN, the clean run is one with the same NaN that
nobody kills; a grader that hangs may add to the metric that counts time-outs.

Finished lines stand in FOLDER/faults.jsonl: the same command goes on after them. Runs of faults that were not
survived, or not identical, stay there. The last line is JSON, and the exit status 0 if nothing was lost.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from benchmarks import faulty_run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vgpo.checkpoints import CheckpointStore
from vgpo.metric_names import GRADER_TIMEOUTS, GUARD_SKIPPED_STEPS
from vgpo.run.environment import describe_environment
from vgpo.toy import write_datasets

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8
TRAINING_SEEDS = 3
RECIPE = {
    "max_steps": STEPS,
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_completion_length": 24,
    "use_cpu": True,
    "log_rollouts_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "report_to": "none",
}
NUM_QUESTIONS = 12
SECONDS = 180.0  # longest time that a run may take, or need to notice that it cannot go on
TIMED = ("time", "runtime", "per_second", "profiling")
START_SECONDS = 4.0
DISK_BYTES = 256 << 20
FILLER = "filler"
FULL = ("No space left on device", "File too large")


class LostError(Exception):
    """A fault that was not survived; says what was found in place of what should be."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise LostError(otherwise)


@dataclass(frozen=True)
class Result:
    """A line of the campaign."""

    seed: int
    kind: str
    fault: str
    survived: bool
    identical: bool
    resumed: bool
    seconds: float
    found: str = ""


class Launch:
    """A start of `vgpo train`, in the background; ends with the block."""

    def __init__(
        self, words: Sequence[str], run: Path, log: Path, processes: int, fault: Callable[[], None] | None
    ) -> None:
        self.run, self.log = run, log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = CONTEXT.Process(target=faulty_run.train, args=(words, log, processes, fault))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait_for_lines(self, number: int, seconds: float = 0.0) -> None:
        """Until metrics.jsonl has so many lines, and so many seconds longer; or until the run ends."""
        metrics, end = self.run / "metrics.jsonl", time.monotonic() + SECONDS
        while self.process.is_alive() and num_lines(metrics) < number and time.monotonic() < end:
            time.sleep(0.01)
        self.process.join(seconds)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def status(self) -> int:
        """The exit status, once the process has ended; minus the number of a signal that ended it."""
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            raise LostError(f"still running after {SECONDS:g} s, see {self.log}")
        return self.process.exitcode or 0

    def should_end_with(self, status: int) -> None:
        found = self.status()
        expect(found == status, f"exit status {found}, expected {status}: {last_words(self.log)}")


CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Lab:
    """A folder with a recipe, its data, the clean runs, and the runs that faults strike."""

    folder: Path
    recipe: Path

    @classmethod
    def build(cls, folder: Path) -> "Lab":
        CONTEXT.set_forkserver_preload(["benchmarks.faulty_run", "vgpo.recipe.train"])
        folder.mkdir(parents=True, exist_ok=True)
        recipe, data = folder / "recipe.yaml", folder / "train.parquet"
        if not recipe.exists():
            write_datasets(folder, num_train=NUM_QUESTIONS, num_test=1, progress=False)
            values = yaml.safe_load((ROOT / "recipes" / "quickstart_vgpo.yaml").read_text(encoding="utf-8"))
            del values["eval_data"]
            recipe.write_text(yaml.safe_dump({**values, **RECIPE, "train_data": str(data)}), encoding="utf-8")
        return cls(folder, recipe)

    def launch(
        self,
        run: Path,
        seed: int,
        log: Path,
        *words: str,
        processes: int = 1,
        fault: Callable[[], None] | None = None,
    ) -> Launch:
        command = ["--config", str(self.recipe), "--seed", str(seed), "--run_dir", str(run), "--resume", "true"]
        return Launch([*command, *words], run, log, processes, fault)

    def clean(self, seed: int, processes: int = 1) -> Path:
        """The folder of the run that nothing befell; it is made when first asked for."""
        run = self.folder / "clean" / f"{seed}-{processes}"
        if not (run / "report.html").exists():
            shutil.rmtree(run, ignore_errors=True)
            log = self.folder / "logs" / f"clean-{run.name}" / "log.txt"
            count = partial(faulty_run.count_operations, self.counts(seed)) if processes == 1 else None
            self.launch(run, seed, log, processes=processes, fault=count).should_end_with(0)
        return run

    def counts(self, seed: int) -> Path:
        """Where the clean run wrote how many changes of the file system each of its saves made."""
        return self.folder / f"operations-{seed}.json"


@dataclass
class Trial:
    """One fault: the run that it strikes, and what it is drawn from."""

    lab: Lab
    kind: str
    seed: int
    processes: int = 1
    planted: Callable[[], None] | None = None
    reference: Path | None = None
    may_differ: tuple[str, ...] = TIMED
    save_steps: int = 1
    said: str = ""
    resumed: bool = False

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.kind} {self.seed}")
        self.run = self.lab.folder / "runs" / f"{self.seed}-{self.kind}"
        self.logs = self.lab.folder / "logs" / self.run.name
        self.clear()

    def clear(self) -> None:
        """Remove what the fault left behind."""
        for folder in (self.run, self.logs, self.run.with_name(f"{self.run.name}-clean")):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def training_seed(self) -> int:
        return self.seed % TRAINING_SEEDS

    def moment(self, lines: Sequence[int]) -> tuple[int, float]:
        """After which line of metrics.jsonl, and how long after it: before the first, anywhere in the start."""
        times = [line["time"] for line in read_lines(self.lab.clean(self.training_seed) / "metrics.jsonl")]
        line = self.draw.choice(lines)
        return line, self.draw.random() * ((times[-1] - times[0]) / len(times) if line else START_SECONDS)

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.run / "checkpoints", keep=None)

    def start(self, name: str = "struck", fault: Callable[[], None] | None = None) -> Launch:
        words = ["--save_steps", str(self.save_steps)]
        log = self.logs / f"{name}.txt"
        fault = fault or self.planted
        return self.lab.launch(self.run, self.training_seed, log, *words, processes=self.processes, fault=fault)

    def strike(self, number: signal.Signals, lines: Sequence[int]) -> Launch:
        """Start, wait until metrics.jsonl has one of these numbers of lines and up to a step longer, and signal."""
        line, seconds = self.moment(lines)
        self.save_steps = self.draw.choice((1, 2, 3))
        launch = self.start()
        launch.wait_for_lines(line, seconds)
        self.said += f"{number.name} {seconds:.2f} s after line {line}, a checkpoint every {self.save_steps} step(s)"
        expect(launch.process.is_alive(), f"it had ended before: {last_words(launch.log)}")
        launch.send(number)
        return launch

    def resume(self) -> None:
        self.resumed = True
        launch = self.start("resumed")
        launch.should_end_with(0)
        left = [path.name for path in (self.run / "checkpoints").glob(".*")]
        expect(not left, f"left behind: {left}")


# The kinds: each starts the run, lets a fault strike it, says what it did, and resumes.


def kill(trial: Trial) -> None:
    """At a random moment, from the first second to the writing of the final weights."""
    trial.strike(signal.SIGKILL, range(STEPS + 2)).should_end_with(-signal.SIGKILL)
    trial.resume()


def kill_in_save(trial: Trial) -> None:
    """Before a random change of the file system inside a save, up to the deletion of older checkpoints."""
    operations = json.loads(trial.lab.counts(trial.training_seed).read_text())
    save = trial.draw.randrange(1, STEPS + 1)
    operation = trial.draw.randrange(1, operations[save - 1] + 1)
    trial.said = f"SIGKILL in save {save}, before change {operation} of {operations[save - 1]}"
    trial.start(fault=partial(faulty_run.die_in_save, save, operation)).should_end_with(-signal.SIGKILL)
    newest = trial.store.newest_valid().step or 0
    expect(newest in (save - 1, save), f"the newest usable checkpoint is {newest}, expected {save - 1} or {save}")
    trial.resume()


def truncate(trial: Trial) -> None:
    """After a kill, a random file of the newest checkpoint is cut, deleted, or has one bit flipped.

    If it is the only one, the resume must refuse to start over, and does so once that checkpoint is removed.
    """
    trial.strike(signal.SIGKILL, range(4, STEPS + 1)).should_end_with(-signal.SIGKILL)
    newest = trial.store.newest_valid().path
    if newest is None:
        raise LostError("no usable checkpoint after a kill")
    trial.said += f"; {newest.name}: {damage(newest, trial.draw)}"
    if trial.store.newest_valid().path is None:
        refused = trial.start("refused")
        refused.should_end_with(2)
        expect(f"  {newest.name}: " in text_of(refused.log), "the damage was not named")
        shutil.rmtree(newest)
        trial.resume()
        return
    trial.resume()
    expect(f"passed over: {newest.name}" in text_of(trial.logs / "resumed.txt"), "the damage was not noticed")


def full_disk(trial: Trial) -> None:
    """The disk fills up, but for a random rest that holds no checkpoint; then space is freed."""
    weights = trial.lab.clean(trial.training_seed) / "checkpoints" / "final" / "model.safetensors"
    line, free = trial.draw.randrange(1, STEPS), trial.draw.randrange(weights.stat().st_size)
    with on_small_disk(trial) as disk:
        launch = trial.start()
        launch.wait_for_lines(line)
        if disk:
            fill(disk, free)
        else:
            resource.prlimit(launch.pid, resource.RLIMIT_FSIZE, (free, free))
        trial.said = f"{'a tmpfs' if disk else 'files limited,'} with {free} bytes left after line {line}"
        launch.should_end_with(2)
        words = text_of(launch.log)
        expect("error: " in words and any(reason in words for reason in FULL), last_words(launch.log))
        if disk:
            (disk / FILLER).unlink()
        trial.resume()


def hanging_grader(trial: Trial) -> None:
    """The check of one answer more, in a random batch, takes hours; the run goes on, and nothing is resumed."""
    batch = trial.draw.randrange(1, 5)
    trial.said = f"an answer whose check takes hours in batch {batch}"
    trial.may_differ = (*TIMED, GRADER_TIMEOUTS)
    trial.start(fault=partial(faulty_run.hang_grader, batch)).should_end_with(0)
    hung = [line.get(GRADER_TIMEOUTS, 0.0) for line in read_lines(trial.run / "metrics.jsonl")]
    expect(max(hung) > 0, "no check was timed out")


def nan_gradient(trial: Trial) -> None:
    """A NaN in the gradient of a random step, which is skipped and counted; the run is killed and resumed too."""
    step = trial.draw.randrange(STEPS)
    trial.planted = partial(faulty_run.plant_nan, step)
    trial.reference = trial.run.with_name(f"{trial.run.name}-clean")
    log = trial.logs / "clean.txt"
    trial.lab.launch(trial.reference, trial.training_seed, log, fault=trial.planted).should_end_with(0)
    skipped = max(line.get(GUARD_SKIPPED_STEPS, 0) for line in read_lines(trial.reference / "metrics.jsonl"))
    expect(skipped == 1, f"{skipped} steps were skipped, expected 1")
    trial.said = f"NaN in the gradient of step {step + 1}; "
    trial.strike(signal.SIGKILL, range(1, STEPS + 1)).should_end_with(-signal.SIGKILL)
    trial.resume()


def drop_worker(trial: Trial) -> None:
    """One of two processes is killed; the launch ends, and two go on."""
    trial.processes, rank = 2, trial.draw.randrange(2)
    trial.reference = trial.lab.clean(trial.training_seed, processes=2)
    line, seconds = trial.moment(range(1, STEPS))
    trial.said = f"SIGKILL to process {rank} of 2 {seconds:.2f} s after line {line}"
    launch = trial.start()
    launch.wait_for_lines(line, seconds)
    os.kill(int(text_of(trial.logs / f"worker-{rank}.pid")), signal.SIGKILL)
    launch.should_end_with(1)
    trial.resume()


def sigterm(trial: Trial) -> None:
    """At a random moment of training: the step is finished and saved, and the exit status is 143."""
    trial.strike(signal.SIGTERM, range(1, STEPS)).should_end_with(128 + signal.SIGTERM)
    found, last = trial.store.newest_valid().step, read_lines(trial.run / "metrics.jsonl")[-1]["step"]
    expect(found == last, f"the newest usable checkpoint is of step {found}, the last line of step {last}")
    trial.resume()


KINDS: dict[str, Callable[[Trial], None]] = {
    kind.__name__: kind
    for kind in (kill, kill_in_save, truncate, full_disk, hanging_grader, nan_gradient, drop_worker, sigterm)
}


def damage(checkpoint: Path, draw: random.Random) -> str:
    """Cut, delete or flip a bit of a random file; says which."""
    path = draw.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    place, way = draw.randrange(len(content)), draw.choice(("cut", "deleted", "flipped"))
    if way == "deleted":
        path.unlink()
        return f"{path.name} deleted"
    if way == "cut":
        path.write_bytes(content[:place])
        return f"{path.name} cut after {place} of {len(content)} bytes"
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path.name} with a bit of byte {place} flipped"


@contextmanager
def on_small_disk(trial: Trial) -> Iterator[Path | None]:
    """The run's folder on a tmpfs, and a copy of it in its place afterwards; None where nobody may mount one."""
    place, disk = trial.run, trial.lab.folder / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    trial.run = disk / place.name
    try:
        yield disk
    finally:
        shutil.copytree(trial.run, place)
        trial.run = place
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, free: int) -> None:
    """Fill a disk that is written to, but for so many bytes."""
    with (disk / FILLER).open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        file.truncate(max(0, file.tell() - free))


# What came out of it.


def differences(run: Path, reference: Path, may_differ: Sequence[str] = TIMED) -> list[str]:
    """Which of weights, metrics and rollouts are not those of the reference, with the first place."""
    found = []
    weights = [
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in final.glob("*.safetensors")}
        for final in (run / "checkpoints" / "final", reference / "checkpoints" / "final")
    ]
    if weights[0] != weights[1] or not weights[0]:
        found.append("weights differ")
    written: dict[str, list[Sequence[Any]]] = {
        "metrics": [told(folder / "metrics.jsonl", may_differ) for folder in (run, reference)],
        "rollouts": [text_of(folder / "rollouts.jsonl").splitlines() for folder in (run, reference)],
    }
    for name, (lines, expected) in written.items():
        if lines != expected or not lines:
            equal = (line == other for line, other in zip(lines, expected, strict=False))
            first = next((f"line {number}" for number, same in enumerate(equal, start=1) if not same), "the end")
            found.append(f"{name} differ from {first} on ({len(lines)} lines, expected {len(expected)})")
    return found


def told(path: Path, may_differ: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the names that hold one of these words."""
    return [
        {name: value for name, value in line.items() if not any(word in name for word in may_differ)}
        for line in read_lines(path)
    ]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(path).splitlines()]


def num_lines(path: Path) -> int:
    return text_of(path).count("\n")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def last_words(log: Path) -> str:
    return " ".join(text_of(log).split())[-300:] or "nothing was said"


def inject(lab: Lab, kind: str, seed: int) -> Result:
    """Let one fault strike, resume, and compare."""
    trial = Trial(lab, kind, seed)
    clean, started = lab.clean(trial.training_seed), time.monotonic()
    try:
        KINDS[kind](trial)
        survived, found = True, differences(trial.run, trial.reference or clean, trial.may_differ)
    except LostError as error:
        survived, found = False, [str(error)]
    identical = not found
    if identical:
        trial.clear()
    else:
        found.append(f"kept: {trial.run}, {trial.logs}")
    seconds = round(time.monotonic() - started, 1)
    return Result(seed, kind, trial.said, survived, identical, trial.resumed, seconds, "; ".join(found))


def campaign(lab: Lab, kinds: Sequence[str], num_faults: int, console: Console) -> list[Result]:
    """Inject the faults that `faults.jsonl` does not hold yet; return all."""
    written = lab.folder / "faults.jsonl"
    results = [Result(**line) for line in read_lines(written)]
    done = {(result.seed, result.kind) for result in results}
    faults = [(seed, kinds[seed % len(kinds)]) for seed in range(num_faults)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("faults", total=num_faults, completed=len(done.intersection(faults)))
        for seed, kind in faults:
            if (seed, kind) in done:
                continue
            progress.update(task, description=kind)
            results.append(inject(lab, kind, seed))
            with written.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(results[-1])) + "\n")
            say(results[-1], console)
            progress.advance(task)
    return [result for result in results if (result.seed, result.kind) in faults]


def say(result: Result, console: Console) -> None:
    ends = "survived" if result.survived else "LOST", "identical" if result.identical else "DIFFERENT"
    line = f"{result.seed:3d}  {result.kind:14s}  {'  '.join(ends)}  {result.seconds:5.1f} s  {result.fault}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if result.found:
        console.print(f"     {result.found}", markup=False, highlight=False, soft_wrap=True)


def refuse_other_code(folder: Path) -> None:
    """Whether the lines that are there are of the code that is to go on."""
    path, commit = folder / "commit.txt", str(describe_environment(0, [])["commit"])
    if path.exists() and text_of(path) != commit:
        sys.exit(f"{folder} holds a campaign at commit {text_of(path)}, and this is {commit}: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(commit, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, help="how many faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="folder of the campaign; by default a new one")
    arguments = parser.parse_args()
    folder = (arguments.out or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    refuse_other_code(folder)
    # Processes that are killed leave semaphores behind, which the standard library removes, and mentions.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    console = Console()
    console.print(f"in {folder}", highlight=False, soft_wrap=True)
    results = campaign(Lab.build(folder), arguments.kinds, arguments.seeds, console)
    counts = {
        "injected": len(results),
        "survived": sum(result.survived for result in results),
        "identical": sum(result.identical for result in results),
        "resumed": sum(result.resumed for result in results),
    }
    print(json.dumps(counts))
    sys.exit(counts["identical"] < len(results))


if __name__ == "__main__":
    main()
