"""`vgpo eval`: greedy accuracy of a checkpoint on a data set, with its interval."""

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from trl import ModelConfig

from vgpo.commands.loading import check_image_token, load_model, load_processor, load_prompts, quiet_libraries
from vgpo.commands.recipe import RecipeError
from vgpo.data import DataError
from vgpo.study import evaluate

ERRORS = (RecipeError, DataError)


def run(
    checkpoint: str,
    *,
    data: str,
    template: str,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    min_pixels: int | None,
    max_pixels: int | None,
    dtype: str,
    out: Path | None,
) -> None:
    """Evaluate and print; with `out`, write every answer as JSON.

    Pixel limits that are not given are those saved with the checkpoint, hence those of its training.
    """
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        prompts = load_prompts(data, template, toy_folder=Path(folder), limit=limit)
        source = ModelConfig(model_name_or_path=checkpoint, dtype=dtype)
        processor = load_processor(source, trust_remote_code=False, min_pixels=min_pixels, max_pixels=max_pixels)
        model = load_model(source, trust_remote_code=False).to("cuda" if torch.cuda.is_available() else "cpu")
        check_image_token(model, processor)
        scores = evaluate(model, processor, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens)
    Console().print(f"{checkpoint} on {data}: {scores}", highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        settings = {
            "checkpoint": checkpoint,
            "data": data,
            "template": template,
            "limit": limit,
            "max_new_tokens": max_new_tokens,
            "image_size": dict(processor.image_processor.size),
            "decoding": "greedy",
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(settings | dataclasses.asdict(scores), indent=2) + "\n", encoding="utf-8")
