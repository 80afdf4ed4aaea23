"""Where faults strike: runs of the toy model, each in a process, and a comparison with undisturbed runs."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from benchmarks import faulty_run
from PIL import Image, ImageOps

from vgpo.checkpoints import CheckpointStore
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


class LostError(Exception):
    """A fault that was not survived; says what was found in place of what should be."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise LostError(otherwise)


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

    def wait_for(self, path: Path, seconds: float) -> None:
        """Until there is such a file or folder, and so many seconds longer; or until the run ends."""
        end = time.monotonic() + SECONDS
        while self.process.is_alive() and not path.exists() and time.monotonic() < end:
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
        """The folder of an undisturbed run, created on first use."""
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

    @property
    def data(self) -> Path:
        return self.folder / "train.parquet"

    @cached_property
    def moved_data(self) -> Path:
        """The training set in another folder, with its rows in files of their own."""
        return write_rows(self.folder / "moved", rows_of(self.data))

    @cached_property
    def changes(self) -> list[tuple[str, list[str]]]:
        """What makes another run, by the name that an error gives it, and the words that make it."""
        inverted, labelled = rows_of(self.data), rows_of(self.data)
        inverted[0]["image"] = invert(inverted[0]["image"])
        labelled[-1]["unit"] = "cm"
        sets = [write_rows(self.folder / name, rows) for name, rows in (("inverted", inverted), ("unit", labelled))]
        return [
            *(("data set", ["--train_data", str(path)]) for path in sets),
            ("learning_rate", ["--learning_rate", "3e-5"]),
            ("template", ["--template", "think_boxed"]),
            ("rewards", ["--rewards", "accuracy", "format"]),
            ("beta", ["--beta", "0.5"]),
            ("max_pixels", ["--max_pixels", "20000"]),
        ]

    @cached_property
    def hostile_data(self) -> dict[str, Path]:
        """Sets whose first image must not be read, by what it is."""
        firsts: dict[str, Callable[[Path], Any]] = {
            "a FIFO": os.mkfifo,
            "a link to a device": lambda path: path.symlink_to("/dev/zero"),
            "a link out of the folder": lambda path: path.symlink_to(self.data),
            "a PNG whose data is short": lambda path: path.write_bytes(short_png()),
        }
        rows = rows_of(self.data)
        return {
            name: write_rows(self.folder / f"hostile-{number}", rows, first)
            for number, (name, first) in enumerate(firsts.items())
        }

    def steps_saved(self, run: Path) -> list[int]:
        return CheckpointStore(run / "checkpoints", keep=None).steps()


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
    words: list[str] = field(default_factory=list)
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

    def start(self, name: str = "struck", *more: str, fault: Callable[[], None] | None = None) -> Launch:
        words = ["--save_steps", str(self.save_steps), *self.words, *more]
        log = self.logs / f"{name}.txt"
        fault = fault or self.planted
        return self.lab.launch(self.run, self.training_seed, log, *words, processes=self.processes, fault=fault)

    def must_refuse(self, reason: str, *words: str, changes_nothing: bool = True) -> str:
        """Start with these words, which must end in an error with this reason; returns what was said."""
        before = self.metrics()
        refused = self.start("refused", *words)
        refused.should_end_with(2)
        said = text_of(refused.log)
        expect("error: " in said and reason in said, f"{reason!r} was not named: {last_words(refused.log)}")
        expect(not changes_nothing or self.metrics() == before, "the refused start has changed metrics.jsonl")
        return said

    def metrics(self) -> str:
        return text_of(self.run / "metrics.jsonl")

    def strike(self, number: signal.Signals, lines: Sequence[int]) -> Launch:
        """Start, wait until metrics.jsonl has one of these numbers of lines and up to a step longer, and signal."""
        line, seconds = self.moment(lines)
        self.save_steps = self.draw.choice((1, 2, 3))
        launch = self.started_until(line, seconds)
        while not launch.process.is_alive():  # on a fast machine it ends within a step's time
            expect(line > lines[0], f"it had ended before: {last_words(launch.log)}")
            line -= 1
            shutil.rmtree(self.run)
            launch = self.started_until(line, seconds)
        self.said += f"{number.name} {seconds:.2f} s after line {line}, a checkpoint every {self.save_steps} step(s)"
        launch.send(number)
        return launch

    def started_until(self, line: int, seconds: float) -> Launch:
        launch = self.start()
        launch.wait_for_lines(line, seconds)
        return launch

    def killed_after_save(self, step: int, seconds: float) -> bool:
        """Whether a SIGKILL so many seconds after the save of a step has ended the run, and not its own end."""
        launch = self.start()
        launch.wait_for(self.run / "checkpoints" / f"checkpoint-{step}", seconds)
        with suppress(ProcessLookupError):
            launch.send(signal.SIGKILL)
        if launch.status() == -signal.SIGKILL:
            return True
        shutil.rmtree(self.run)
        return False

    def resume(self) -> None:
        self.resumed = True
        launch = self.start("resumed")
        launch.should_end_with(0)
        left = [path.name for path in (self.run / "checkpoints").glob(".*")]
        expect(not left, f"left behind: {left}")


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
        "metrics": [comparable_lines(folder / "metrics.jsonl", may_differ) for folder in (run, reference)],
        "rollouts": [text_of(folder / "rollouts.jsonl").splitlines() for folder in (run, reference)],
    }
    for name, (lines, expected) in written.items():
        if lines != expected or not lines:
            equal = (line == other for line, other in zip(lines, expected, strict=False))
            first = next((f"line {number}" for number, same in enumerate(equal, start=1) if not same), "the end")
            found.append(f"{name} differ from {first} on ({len(lines)} lines, expected {len(expected)})")
    return found


def comparable_lines(path: Path, may_differ: Sequence[str]) -> list[dict[str, Any]]:
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


# Datasets.


def rows_of(data: Path) -> list[dict[str, Any]]:
    """The rows of the toy task; the image as its encoded bytes."""
    return [
        {"problem": row["problem"], "answer": row["answer"], "image": row["images"][0]["bytes"]}
        for row in pq.read_table(data).to_pylist()
    ]


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], first: Callable[[Path], Any] | None = None) -> Path:
    """Write a dataset as train.jsonl with an image file per row; `first` writes that of the first row."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = []
    for number, row in enumerate(rows):
        path = folder / f"{number}.png"
        if first is not None and number == 0:
            first(path)
        else:
            path.write_bytes(row["image"])
        texts = {name: value for name, value in row.items() if name != "image"}
        lines.append(json.dumps({"images": [path.name], **texts}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "train.jsonl"


def invert(encoded: bytes) -> bytes:
    """Another image of the same size."""
    file = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(encoded)).convert("RGB")).save(file, "PNG")
    return file.getvalue()


def short_png() -> bytes:
    """A PNG of 79 megapixels with correct checksums, whose compressed data is cut short."""
    header = struct.pack(">IIBBBBB", 8_900, 8_900, 8, 2, 0, 0, 0)
    rows = zlib.compress(random.Random(0).randbytes(10_000))
    chunks = (b"IHDR", header), (b"IDAT", rows[: len(rows) // 2]), (b"IEND", b"")
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
