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
from vgpo.evaluation.accuracy import answer_of, evaluate_answers
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
from vgpo.recipe.serving import offline_engine
from vgpo.run import RunFolderError
from vgpo.run.trained import trained_settings
from vgpo.terminal import say
from vgpo.vllm.prompts import EngineError

ERRORS = (RecipeError, DataError, RunFolderError, EngineError, OSError)
TRANSFORMERS = "transformers"


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
    engine: str = TRANSFORMERS
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
        scores = ENGINES[engine_of(request)](
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
        settings |= {"image_size": dict(processor.image_processor.size), "engine": request.engine}
        write_answers(request.out, settings, scores)


def answer_all(source: Any, processor: ProcessorMixin, prompts: Dataset, **options: Any) -> Evaluation:
    """Load the model and let it answer; `options` are those of `evaluate`."""
    model = load_model(source, trust_remote_code=False).to("cuda" if torch.cuda.is_available() else "cpu")
    check_image_token(model, processor)
    return evaluate(model, processor, prompts, **options)


def answer_all_with_vllm(
    source: Any,
    processor: ProcessorMixin,
    prompts: Dataset,
    *,
    batch_size: int,
    max_new_tokens: int,
    chat_template_kwargs: dict[str, Any] | None,
) -> Evaluation:
    """Let vLLM answer; arguments as of `answer_all`.

    Raises:
        EngineError: vLLM is not installed, or read other prompts than those of training.
        RecipeError: The checkpoint is an adapter.
    """
    engine = offline_engine(source, processor)

    def answer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        responses = engine.respond(rows, max_new_tokens=max_new_tokens, chat_template_kwargs=chat_template_kwargs)
        texts = processor.batch_decode([response.token_ids for response in responses], skip_special_tokens=True)
        answered = zip(rows, texts, responses, strict=True)
        return [answer_of(row, text, ended=response.ended) for row, text, response in answered]

    return evaluate_answers(answer, prompts, batch_size=batch_size)


ENGINES = {TRANSFORMERS: answer_all, "vllm": answer_all_with_vllm}


def engine_of(request: Request) -> str:
    """The engine that was asked for.

    Raises:
        RecipeError: There is none of this name.
    """
    if request.engine not in ENGINES:
        raise RecipeError(f"--engine {request.engine}: expected one of {list(ENGINES)}")
    return request.engine


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
