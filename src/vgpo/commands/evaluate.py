"""`vgpo eval`: greedy accuracy of a checkpoint on a dataset, with its interval."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vgpo.data import AS_IT_IS, DataError, Reading
from vgpo.evaluation import Evaluation
from vgpo.evaluation.accuracy import evaluate_answers
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import load_prompts, quiet_libraries
from vgpo.recipe.policies import TRANSFORMERS, CheckpointOptions, OpenCheckpoint, open_checkpoint
from vgpo.run import RunFolderError
from vgpo.run.outputs import check_writable
from vgpo.terminal import say
from vgpo.vllm.prompts import EngineError

ERRORS = (RecipeError, DataError, RunFolderError, EngineError, OSError)


@dataclass(frozen=True, kw_only=True)
class Request(CheckpointOptions):
    """The options of `vgpo eval`; None stands for what the checkpoint was trained with."""

    checkpoint: str
    data: str
    reading: Reading = AS_IT_IS
    engine: str = TRANSFORMERS
    limit: int | None = None
    batch_size: int = 64
    out: Path | None = None


def run(request: Request) -> None:
    """Evaluate and print; with `out`, write every answer as JSON.

    What is not given is as in training; see `vgpo.recipe.policies.open_checkpoint`.
    """
    quiet_libraries()
    if request.out is not None:
        check_writable(request.out)
    checkpoint = open_checkpoint(request.checkpoint, request, engine=request.engine)
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        prompts = load_prompts(
            request.data,
            checkpoint.template,
            toy_folder=Path(folder),
            reading=request.reading,
            limit=request.limit,
            forbidden=checkpoint.forbidden(),
        )
        answer = partial(checkpoint.policy().complete, max_new_tokens=checkpoint.max_new_tokens)
        scores = evaluate_answers(answer, prompts, batch_size=request.batch_size)
    say(Console(), f"{request.checkpoint} on {request.data}: {scores}")
    if request.out is not None:
        write_answers(request.out, settings_of(request, checkpoint), scores)


def one_dataset(data: Sequence[str], of_suites: Mapping[str, Any]) -> str:
    """The dataset of the options `--data`.

    Args:
        data: The options.
        of_suites: Options that only a suite has.

    Raises:
        RecipeError: There is no dataset, or there are several, or an option of suites is given.
    """
    given = [option for option, value in of_suites.items() if value is not None]
    if given:
        raise RecipeError(f"{given[0]} is for benchmarks: add --suite vgpo or --tasks NAME, or remove it")
    if len(data) != 1:
        raise RecipeError(
            f"found {len(data)} options --data, expected one dataset; for benchmarks add --suite vgpo or --tasks NAME"
        )
    return data[0]


def settings_of(request: Request, checkpoint: OpenCheckpoint) -> dict[str, Any]:
    """What the figures were found with."""
    return {
        "checkpoint": request.checkpoint,
        "data": request.data,
        "template": checkpoint.template,
        **dataclasses.asdict(request.reading),
        "limit": request.limit,
        "max_new_tokens": checkpoint.max_new_tokens,
        "image_size": dict(checkpoint.processor.image_processor.size),
        "engine": request.engine,
    }


def write_answers(out: Path, settings: dict[str, Any], scores: Evaluation) -> None:
    """The figures and every answer, under the settings that they were found with."""
    found = {**settings, "decoding": "greedy", **dataclasses.asdict(scores)}
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
