"""`vgpo eval --suite`: scores of a checkpoint on benchmarks."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from vgpo.data import DataError
from vgpo.evaluation.benchmarks import SUITES, tasks_of
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import protocol_named
from vgpo.recipe.recipe import RecipeError
from vgpo.run import RunFolderError
from vgpo.run.trained import run_of_checkpoint
from vgpo.terminal import say
from vgpo.vllm.prompts import EngineError

ERRORS = (EvaluationError, RecipeError, DataError, RunFolderError, EngineError)
DEFAULT_SUITE = next(iter(SUITES))
FOLDER = Path("evaluations")


def run(
    checkpoint: str,
    *,
    suite: str | None,
    tasks: str | None,
    data: Sequence[str],
    protocol: str,
    out: Path | None,
    **options: Any,
) -> None:
    """Evaluate and print.

    Args:
        checkpoint: Folder, hub name, `toy`, or what a server calls the model.
        suite: A key of `SUITES`.
        tasks: Names of tasks with commas between them, in place of all of the suite.
        data: Options `--data`.
        protocol: As of `protocol_named`.
        out: The evaluation folder; by default one in `evaluations/`.
        options: Further fields of `SuiteRequest`.

    Raises:
        EvaluationError: A name is unknown, inspect-ai is not installed, or the folder holds another evaluation.
    """
    if find_spec("inspect_ai") is None:
        raise EvaluationError("the runner of benchmarks, inspect-ai, is not installed: pip install 'vgpo[eval]'")
    from vgpo.suite.run import SuiteRequest, evaluate_suite

    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    request = SuiteRequest(
        checkpoint=checkpoint,
        benchmarks=tasks_of(suite or DEFAULT_SUITE, names),
        data=data,
        protocol=protocol_named(protocol),
        out=out or default_folder(checkpoint, protocol),
        **options,
    )
    console = Console()
    evaluate_suite(request, console)
    say(console, f"answers, scores and logs: {request.out}")


def default_folder(checkpoint: str, protocol: str) -> Path:
    """A folder named after the run of a checkpoint, or the checkpoint, and the protocol."""
    run = run_of_checkpoint(Path(checkpoint))
    named = f"{run.name}-{Path(checkpoint).resolve().name}" if run else checkpoint.strip("/")
    return FOLDER / re.sub(r"[^\w.-]+", "-", f"{named}-{protocol}").strip("-.")
