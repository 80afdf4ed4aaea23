"""Interpret the options of an evaluation, without inspect-ai, which may not be installed."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vgpo.data import Reading
from vgpo.evaluation.benchmark_rows import data_options, with_data
from vgpo.evaluation.benchmarks import SUITES, Benchmark, tasks_of
from vgpo.evaluation.errors import EvaluationError
from vgpo.run.trained import run_of_checkpoint
from vgpo.text import did_you_mean

DEFAULT_SUITE = next(iter(SUITES))
FOLDER = Path("evaluations")


def check_runner() -> None:
    """Raises:
    EvaluationError: inspect-ai, which asks the questions, is not installed.
    """
    if find_spec("inspect_ai") is None:
        raise EvaluationError("the runner of benchmarks, inspect-ai, is not installed: pip install 'vgpo[eval]'")


def requested_tasks(suite: str | None, tasks: str | None, data: Sequence[str], reading: Reading) -> list[Benchmark]:
    """The tasks that are named, or all of the suite.

    Raises:
        EvaluationError: A name is unknown, or an option is for a task that is not asked for.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    sources, _ = data_options(data)
    benchmarks = tasks_of(suite or DEFAULT_SUITE, names, sources)
    for name in sources.keys() - {benchmark.name for benchmark in benchmarks}:
        raise EvaluationError(
            f"--data {name}=...: {name!r} is not one of the requested tasks"
            f"{did_you_mean(name, [benchmark.name for benchmark in benchmarks])}; name it with --tasks"
        )
    if (reading.format or reading.columns) and all(benchmark.original for benchmark in benchmarks):
        raise EvaluationError(
            "--format and --columns are for tasks without public data, and none is requested; remove them, or name a "
            "task of your own: --tasks mine --data mine=SOURCE"
        )
    return benchmarks if names else with_data(benchmarks, data)


def default_folder(checkpoint: str, protocol: str) -> Path:
    """A folder named after the run of a checkpoint, or the checkpoint, and the protocol."""
    run = run_of_checkpoint(Path(checkpoint))
    named = f"{run.name}-{Path(checkpoint).resolve().name}" if run else checkpoint.strip("/")
    return FOLDER / re.sub(r"[^\w.-]+", "-", f"{named}-{protocol}").strip("-.")
