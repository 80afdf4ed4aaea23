"""Run a focus check of a checkpoint on a dataset and write its file, page and table."""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from vgpo import __version__
from vgpo.data import AS_IT_IS, DataError, Reading
from vgpo.focus_check.measure import measure
from vgpo.focus_check.page import render_check
from vgpo.focus_check.records import VERSION, FocusCheck, FocusCheckError, Settings
from vgpo.focus_check.sampling import Samples, Sampling, sample_groups
from vgpo.focus_check.table import check_table, verdict_text
from vgpo.focus_check.verdict import verdict_of
from vgpo.pages.files import paired_paths
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import check_image_token, load_model, load_prompts, quiet_libraries
from vgpo.recipe.policies import CheckpointOptions, OpenCheckpoint, open_checkpoint
from vgpo.run import RunFolderError
from vgpo.run.outputs import check_writable
from vgpo.run.storage import write_file
from vgpo.terminal import say

ERRORS = (FocusCheckError, RecipeError, DataError, RunFolderError, OSError)
NAME = "focus_check"


@dataclass(frozen=True, kw_only=True)
class Request(CheckpointOptions):
    """The options of `vgpo focus-check`; None means the value that the checkpoint was trained with."""

    checkpoint: str
    data: str
    limit: int = 64
    samples: int = 8
    blind_samples: int = 2
    temperature: float = 1.0
    seed: int = 0
    stratum_column: str | None = None
    out: Path = Path(f"{NAME}.html")
    reading: Reading = AS_IT_IS
    batch_size: int = 64


def run(request: Request) -> None:
    """Sample, measure, write the file and the page, and print the table.

    Raises:
        FocusCheckError: the check cannot be run.
    """
    quiet_libraries()
    json_path, html_path = paired_paths(request.out, NAME)
    check_writable(json_path)
    check_writable(html_path)
    check = focus_check(request)
    write_file(json_path, check.model_dump_json(indent=1).encode("utf-8"))
    write_file(html_path, render_check(check).encode("utf-8"))
    console = Console()
    say(console, verdict_text(check))
    console.print(check_table(check.measures, check.verdict.focus_state))
    say(console, f"focus check: {html_path} (numbers: {json_path})")


def focus_check(request: Request) -> FocusCheck:
    """Run the requested check; arguments and errors as in `run`."""
    checkpoint = open_checkpoint(request.checkpoint, request)
    sampling = Sampling(
        samples=request.samples,
        blind_samples=request.blind_samples,
        temperature=request.temperature,
        max_new_tokens=checkpoint.max_new_tokens,
        batch_size=request.batch_size,
        seed=request.seed,
        chat_template_kwargs=checkpoint.chat_template_kwargs,
    )
    measures = measure(draw(request, checkpoint, sampling))
    return FocusCheck(
        version=VERSION,
        vgpo=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=request.checkpoint,
        data=request.data,
        settings=Settings(
            template=checkpoint.template,
            max_new_tokens=checkpoint.max_new_tokens,
            limit=request.limit,
            samples=request.samples,
            blind_samples=request.blind_samples,
            temperature=request.temperature,
            seed=request.seed,
            stratum_column=request.stratum_column,
        ),
        verdict=verdict_of(measures),
        measures=measures,
    )


def draw(request: Request, checkpoint: OpenCheckpoint, sampling: Sampling) -> Samples:
    """Read the data, load the model and sample."""
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        prompts = load_prompts(
            request.data,
            checkpoint.template,
            toy_folder=Path(folder),
            reading=request.reading,
            limit=request.limit,
            forbidden=checkpoint.forbidden(),
        )
        model = load_model(checkpoint.source, trust_remote_code=False)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        check_image_token(model, checkpoint.processor)
        return sample_groups(model, checkpoint.processor, prompts, sampling, stratum_column=request.stratum_column)
