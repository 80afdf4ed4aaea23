"""`vgpo train` with a fault in it: what `benchmarks.faults` runs in processes of its own."""

import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.checkpoints.faults import inject
from vgpo import cli
from vgpo.checkpoints import CheckpointStore
from vgpo.rewards import Grader
from vgpo.rewards.process import SymbolicWorker
from vgpo.trl import VGPOTrainer

HANGING = r"\boxed{9**(9*9*9*9*9*9*9*9*9)}"  # a power of 387 million digits


def train(words: Sequence[str], log: Path, processes: int, fault: Callable[[], None] | None) -> None:
    """Run `vgpo train WORDS` here, or behind an elastic launch of so many processes; what is said goes to `log`."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if fault is not None:
        fault()
    sys.argv = ["vgpo", "train", *words]
    if processes == 1:
        cli.main()
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(launch, worker)(log.parent)


def worker(folder: Path) -> None:
    (folder / f"worker-{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    cli.main()


def count_operations(counts: Path) -> None:
    """Write how many changes of the file system each save makes."""
    operations = inject("nothing", 0)
    begin, commit = CheckpointStore.begin, CheckpointStore.commit
    before: list[int] = []
    done: list[int] = []

    def marked_begin(store: CheckpointStore, step: int) -> Path:
        before.append(operations())
        return begin(store, step)

    def marked_commit(store: CheckpointStore, step: int) -> Path:
        place = commit(store, step)
        done.append(operations() - before[-1])
        counts.write_text(json.dumps(done))
        return place

    CheckpointStore.begin, CheckpointStore.commit = marked_begin, marked_commit  # type: ignore[assignment,method-assign]


def die_in_save(save: int, operation: int) -> None:
    """SIGKILL in the save of this number, just before its change of the file system of this number; both from 1."""
    begin, saves = CheckpointStore.begin, itertools.count(1)

    def armed_begin(store: CheckpointStore, step: int) -> Path:
        if next(saves) == save:
            inject("kill", operation)
        return begin(store, step)

    CheckpointStore.begin = armed_begin  # type: ignore[assignment,method-assign]


def plant_nan(step: int) -> None:
    """A gradient that is not a number in the update after this many."""
    training_step = VGPOTrainer.training_step

    def planted(trainer: VGPOTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = training_step(trainer, *args, **kwargs)
        if trainer.state.global_step == step:
            next(weight.grad for weight in trainer.model.parameters() if weight.grad is not None).fill_(math.nan)
        return loss

    VGPOTrainer.training_step = planted  # type: ignore[assignment,method-assign]


def hang_grader(call: int) -> None:
    """One answer more in the batch of this number, from 1, whose check does not end."""
    grade, calls = Grader.grade, itertools.count(1)

    def with_one_more(grader: Grader, predictions: Sequence[str], references: Sequence[str | int]) -> list[bool]:
        if next(calls) != call:
            return grade(grader, predictions, references)
        return grade(grader, [*predictions, HANGING], [*references, "1.5"])[:-1]

    Grader.grade = with_one_more  # type: ignore[assignment,method-assign]


def fork_and_return() -> None:
    os.fork()


def lose_output() -> None:
    print("x" * 1_000_000)
    sys.stdout.close()
    os.close(1)


DEEDS: dict[str, Callable[[], Any]] = {
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "a fork that returns twice": fork_and_return,
    "a change of the folder": lambda: os.chdir("/"),
    "a loss of the standard output": lose_output,
}
ENDING_DEEDS = ("sys.exit", "os._exit")


def misbehave(call: int, deed: str) -> None:
    """What a reward does in the batch of this number, from 1, before it grades."""
    grade, calls = Grader.grade, itertools.count(1)

    def misbehaving(grader: Grader, *batch: Any) -> list[bool]:
        if next(calls) == call:
            DEEDS[deed]()
        return grade(grader, *batch)

    Grader.grade = misbehaving  # type: ignore[method-assign]


def lose_log(seconds: float) -> None:
    """After a number of seconds, printed output can no longer be written."""

    def lose() -> None:
        time.sleep(seconds)
        full = os.open("/dev/full", os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(full, descriptor)

    if seconds:
        threading.Thread(target=lose, daemon=True).start()
    else:
        lose()


def kill_grader(call: int, part: str) -> None:
    """SIGKILL to a part of the grader in the batch of this number, from 1; each batch has an answer more to check."""
    grade, ready, calls = Grader.grade, SymbolicWorker.await_ready, itertools.count(1)
    doomed: list[bool] = []

    def grade_with_deaths(grader: Grader, predictions: Sequence[str], references: Sequence[str | int]) -> list[bool]:
        if next(calls) == call:
            doomed.append(True)
        if doomed and part == "server" and grader._server.pid is not None:
            os.kill(grader._server.pid, signal.SIGKILL)
            doomed.clear()
        verdicts = grade(grader, [*predictions, r"\boxed{x+1}"], [*references, "1+x"])
        assert verdicts.pop()
        return verdicts

    def dying(worker: SymbolicWorker) -> bytes:
        if doomed and part == "worker":
            doomed.clear()
            os.kill(worker.pid, signal.SIGKILL)
        return ready(worker)

    Grader.grade = grade_with_deaths  # type: ignore[assignment,method-assign]
    SymbolicWorker.await_ready = dying  # type: ignore[assignment,method-assign]
