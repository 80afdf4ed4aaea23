"""`vgpo eval`: greedy accuracy of a checkpoint on a data set, with its interval."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import ProcessorMixin
from trl import ModelConfig

from vgpo.data import DataError
from vgpo.evaluation import Evaluation, evaluate
from vgpo.recipe.loading import (
    check_image_token,
    load_model,
    load_processor,
    load_prompts,
    picture_tokens,
    quiet_libraries,
)
from vgpo.recipe.recipe import RecipeError
from vgpo.run.trained import trained_settings
from vgpo.terminal import say

ERRORS = (RecipeError, DataError, OSError)


def run(
    checkpoint: str,
    *,
    data: str,
    format: str | None,
    template: str | None,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int | None,
    min_pixels: int | None,
    max_pixels: int | None,
    dtype: str,
    out: Path | None,
) -> None:
    """Evaluate and print; with `out`, write every answer as JSON.

    Template and response length that are not given, and the arguments of the chat template, are those of the run that
    the checkpoint lies in; pixel limits are those saved with the checkpoint.
    """
    quiet_libraries()
    if out is not None:
        refuse_unwritable(out)
    trained = trained_settings(Path(checkpoint))
    template = template or trained["template"]
    max_new_tokens = max_new_tokens or trained["max_completion_length"]
    source = ModelConfig(model_name_or_path=checkpoint, dtype=dtype)
    processor = load_processor(source, trust_remote_code=False, min_pixels=min_pixels, max_pixels=max_pixels)
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        prompts = load_prompts(
            data,
            template,
            toy_folder=Path(folder),
            format=format,
            limit=limit,
            forbidden=picture_tokens(source, processor, trust_remote_code=False),
        )
        scores = answer_all(
            source,
            processor,
            prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            chat_template_kwargs=trained["chat_template_kwargs"],
        )
    say(Console(), f"{checkpoint} on {data}: {scores}")
    if out is not None:
        settings = {"checkpoint": checkpoint, "data": data, "template": template, "limit": limit}
        settings |= {"max_new_tokens": max_new_tokens, "image_size": dict(processor.image_processor.size)}
        write_answers(out, settings, scores)


def answer_all(source: ModelConfig, processor: ProcessorMixin, prompts: Dataset, **options: Any) -> Evaluation:
    """Load the model and let it answer; `options` are those of `evaluate`."""
    model = load_model(source, trust_remote_code=False).to("cuda" if torch.cuda.is_available() else "cpu")
    check_image_token(model, processor)
    return evaluate(model, processor, prompts, **options)


def refuse_unwritable(out: Path) -> None:
    """Make the folder of `out` and open it, before an evaluation is made in vain; what stands there stays.

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
