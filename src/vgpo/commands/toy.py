"""`vgpo toy`: make the toy weights, write the toy task's datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vgpo.toy import TaskSettings, WarmstartLog, WarmstartSettings, parse_task, write_datasets
from vgpo.toy import warmstart as make_checkpoint

ERRORS = (ValueError, OSError)


def warmstart(out: Path, *, task: str | None = None, **options: Any) -> None:
    """Make a checkpoint in ``out``, and print its accuracies on the way; `options` as in `WarmstartSettings`."""
    console = Console()
    log = make_checkpoint(out, WarmstartSettings(task=parse_task(task) if task else TaskSettings(), **options))
    console.print(_accuracy_table(log))
    console.print(f"Checkpoint and log: {escape(str(out))}")


def data(out: Path, num_train: int = 4096, num_test: int = 500, seed: int = 0, task: str | None = None) -> None:
    """Write ``train.parquet`` and ``test.parquet`` of the toy task into ``out``."""
    console = Console()
    settings = parse_task(task) if task else None
    for path in write_datasets(out, num_train=num_train, num_test=num_test, seed=seed, settings=settings):
        console.print(escape(str(path)))


def _accuracy_table(log: WarmstartLog) -> Table:
    table = Table("stage", "step", "loss", "accuracy", "seconds", title="Greedy accuracy on test scans")
    for record in log.records:
        accuracy = ", ".join(f"{name} {value:.3f}" for name, value in record["accuracy"].items())
        table.add_row(record["stage"], str(record["step"]), f"{record['loss']:.3f}", accuracy, str(record["seconds"]))
    return table
