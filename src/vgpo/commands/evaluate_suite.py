"""`vgpo eval --suite`: scores of a checkpoint on benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgpo.data import DataError, Reading
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import protocol_named
from vgpo.recipe.errors import RecipeError
from vgpo.run import RunFolderError
from vgpo.suite.choices import check_runner, default_folder, requested_tasks
from vgpo.terminal import say, table_console
from vgpo.vllm.prompts import EngineError

ERRORS = (EvaluationError, RecipeError, DataError, RunFolderError, EngineError, ImportError)


def run(
    checkpoint: str,
    *,
    suite: str | None,
    tasks: str | None,
    data: Sequence[str],
    reading: Reading,
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
        reading: How rows are read.
        protocol: As in `protocol_named`.
        out: The evaluation folder; by default one in `evaluations/`.
        options: Further fields of `SuiteRequest`.

    Raises:
        EvaluationError: A name is unknown, inspect-ai is not installed, or the folder holds another evaluation.
    """
    check_runner()
    from vgpo.suite.run import SuiteRequest, evaluate_suite

    request = SuiteRequest(
        checkpoint=checkpoint,
        benchmarks=requested_tasks(suite, tasks, data, reading),
        data=data,
        reading=reading,
        protocol=protocol_named(protocol),
        out=out or default_folder(checkpoint, protocol),
        **options,
    )
    console = table_console()
    evaluate_suite(request, console)
    say(console, f"answers, scores and logs: {request.out}")
