"""What every benchmark writes beside its figures: device, versions, commit and seed."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from vgpo.run.environment import cpu_name, describe_environment

LIBRARIES = ("torch", "transformers", "trl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks of the battery have."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.add_argument("--tiny", action="store_true", help="sizes of a test; the figures mean nothing")


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """How long a call takes: by events on CUDA, where a call returns before its kernels end."""
    if device.type == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_event.record()
    function()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / 1000


def environment(seed: int, device: str) -> dict[str, Any]:
    """Code, versions, machine and command of this process; `device` is what is measured, by its maker's name."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no CUDA device. Use --device cpu, or a machine with one.")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    return {**describe_environment(seed, sys.argv), "device": name}


def describe(environment: dict[str, Any]) -> str:
    """The first line of a report."""
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in LIBRARIES)
    return (
        f"{environment['device']}; Python {environment['python']}, {versions}; seed {environment['seed']}; "
        f"commit {commit(environment)}"
    )


def commit(environment: dict[str, Any]) -> str:
    """The first letters of the commit, and whether tracked files differ from it."""
    return f"{(environment['commit'] or 'none')[:9]}{' with changes' if environment['dirty'] else ''}"


def write(file: Path | None, environment: dict[str, Any], **results: Any) -> None:
    """Write the results to `file`, if there is one, beside what they were measured on."""
    if file is not None:
        record = {"environment": environment, "machine": environment["device"], **results}
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def print_line(figures: dict[str, Any], environment: dict[str, Any]) -> None:
    """The last line of a benchmark: its figures and, in short, what they were measured on."""
    short = {
        "device": environment["device"],
        "commit": commit(environment),
        "versions": {name: environment["versions"][name] for name in LIBRARIES},
        "seed": environment["seed"],
    }
    print(json.dumps({**figures, "environment": short}))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"low": low, "median": median, "high": high}


def numbers_table(first: str, *columns: str) -> Table:
    table = Table(first, *columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
