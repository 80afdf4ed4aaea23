"""`vgpo eval`: greedy accuracy of a checkpoint on a data set, with its interval."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import ProcessorMixin

from vgpo.data import AS_IT_IS, DataError, Reading
from vgpo.evaluation import Evaluation, evaluate
from vgpo.recipe.loading import (
    check_image_token,
    checkpoint_config,
    forbidden_tokens,
    load_model,
    load_processor,
    load_prompts,
    quiet_libraries,
)
from vgpo.recipe.recipe import RecipeError
from vgpo.run import RunFolderError
from vgpo.run.trained import trained_settings
from vgpo.terminal import say

ERRORS = (RecipeError, DataError, RunFolderError, OSError)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `vgpo eval`; None stands for what the checkpoint was trained with."""

    checkpoint: str
    data: str
    reading: Reading = AS_IT_IS
    template: str | None = None
    limit: int | None = None
    batch_size: int = 64
    max_new_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    dtype: str = "auto"
    out: Path | None = None


def run(request: Request) -> None:
    """Evaluate and print; with `out`, write every answer as JSON.

    Template and response length that are not given, and the arguments of the chat template, are those of the run that
    the checkpoint belongs to; pixel limits are those saved with the checkpoint.
    """
    quiet_libraries()
    if request.out is not None:
        refuse_unwritable(request.out)
    trained = trained_settings(Path(request.checkpoint))
    template = request.template or trained["template"]
    max_new_tokens = request.max_new_tokens or trained["max_completion_length"]
    source = checkpoint_config(request.checkpoint, request.dtype)
    processor = load_processor(
        source, trust_remote_code=False, min_pixels=request.min_pixels, max_pixels=request.max_pixels
    )
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        prompts = load_prompts(
            request.data,
            template,
            toy_folder=Path(folder),
            reading=request.reading,
            limit=request.limit,
            forbidden=forbidden_tokens(source, processor, trust_remote_code=False),
        )
        scores = answer_all(
            source,
            processor,
            prompts,
            batch_size=request.batch_size,
            max_new_tokens=max_new_tokens,
            chat_template_kwargs=trained["chat_template_kwargs"],
        )
    say(Console(), f"{request.checkpoint} on {request.data}: {scores}")
    if request.out is not None:
        settings = {"checkpoint": request.checkpoint, "data": request.data, "template": template}
        settings |= dataclasses.asdict(request.reading)
        settings |= {"limit": request.limit, "max_new_tokens": max_new_tokens}
        settings |= {"image_size": dict(processor.image_processor.size)}
        write_answers(request.out, settings, scores)


def answer_all(source: Any, processor: ProcessorMixin, prompts: Dataset, **options: Any) -> Evaluation:
    """Load the model and let it answer; `options` are those of `evaluate`."""
    model = load_model(source, trust_remote_code=False).to("cuda" if torch.cuda.is_available() else "cpu")
    check_image_token(model, processor)
    return evaluate(model, processor, prompts, **options)


def refuse_unwritable(out: Path) -> None:
    """Make the folder of `out` and open it, before an evaluation runs in vain; its content stays.

    Raises:
        RecipeError: It cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        is_new = not out.exists()
        out.open("a").close()
        if is_new:
            out.unlink()
    except OSError as error:
        raise RecipeError(f"--out {out}: {error.strerror}; name a file in a folder that can be written to") from error


def write_answers(out: Path, settings: dict[str, Any], scores: Evaluation) -> None:
    """The figures and every answer, under the settings that they were found with."""
    found = {**settings, "decoding": "greedy", **dataclasses.asdict(scores)}
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
