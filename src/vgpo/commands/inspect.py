"""`vgpo inspect`: where a checkpoint looks while it answers, as a file of numbers and as a page."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import ProcessorMixin

from vgpo.data import AS_IT_IS, DataError, Reading
from vgpo.equations import VGPOSettings
from vgpo.inspection import Inspection, InspectionError, iter_questions, write_inspection
from vgpo.inspection.attention import AttentionError
from vgpo.inspection.compute import Inspector, Options
from vgpo.inspection.inspection import compared_heads, compared_questions, read_head
from vgpo.inspection.questions import QuestionSet, Stored, StoredRolloutsError, questions_of, stored_questions
from vgpo.pages.files import paired_paths
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import (
    PlainCheckpoint,
    check_image_token,
    forbidden_tokens,
    load_model,
    load_processor,
    load_prompts,
    quiet_libraries,
)
from vgpo.recipe.policies import ENGINES, TRANSFORMERS
from vgpo.recipe.serving import responses_of_vllm
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.storage import write_file
from vgpo.run.trained import config_of_checkpoint, run_of_checkpoint, trained_settings
from vgpo.shaping.adaptive import AdaptiveSettings
from vgpo.terminal import say
from vgpo.vllm.prompts import EngineError

ERRORS = (AttentionError, DataError, InspectionError, RecipeError, RunFolderError, StoredRolloutsError, EngineError)
NUM_ROWS = 50  # unless the user names rows
NAME = "inspection"
ROWS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Asked:
    """What both models are asked, and how."""

    questions: QuestionSet
    options: Options
    dtype: str
    engine: str = TRANSFORMERS

    def of(self, checkpoint: str, name: str) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
        """An inspection's head and questions for one checkpoint, which is loaded at once."""
        source = PlainCheckpoint(checkpoint, self.dtype)
        stored = self.questions.stored if self.engine == TRANSFORMERS else self._answers_of_vllm(source)
        processor = processor_of(source)
        model = load_model(source, trust_remote_code=False).to("cuda" if torch.cuda.is_available() else "cpu")
        check_image_token(model, processor)
        inspector = Inspector(model, processor, self.options)
        asked = self.questions
        questions = questions_of(asked.rows, asked.numbers, ablations=self.options.ablations, stored=stored)
        head = inspector.head(name, checkpoint, asked.responses)
        return head, inspector.inspect(questions, len(asked.rows), progress=True)

    def _answers_of_vllm(self, source: Any) -> list[list[Stored]]:
        """Responses that vLLM generates before the model is loaded; those without the image come from the model."""
        options = self.options
        found = responses_of_vllm(
            source,
            self.questions.rows,
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature if options.samples > 1 else 0.0,
            seed=options.seed,
            chat_template_kwargs=options.chat_template_kwargs,
        )
        return [[Stored(token_ids) for token_ids in responses] for responses in found]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `vgpo inspect`; None stands for what the checkpoint was trained with, or the default."""

    checkpoint: str
    data: str | None = None
    rows: str | None = None
    compare: str | None = None
    samples: int | None = None
    attention: bool = False
    ablate_image: bool = False
    out: Path = Path("inspection.html")
    reading: Reading = AS_IT_IS
    template: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 64
    seed: int | None = None
    dtype: str = "auto"
    engine: str = TRANSFORMERS

    @property
    def reading_options(self) -> dict[str, Any]:
        """The given options that say how a dataset is read."""
        return {name: value for name, value in vars(self.reading).items() if value != getattr(AS_IT_IS, name)}

    @property
    def generation(self) -> dict[str, Any]:
        """The given options that affect generation."""
        return given(
            samples=self.samples,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            ablate_image=self.ablate_image,
        )


def run(request: Request) -> None:
    """Write the file and the page.

    What is not given is that of the run that the checkpoint belongs to: template, length of responses, arguments of
    the chat template, settings of the method. Without `data`, its stored rollouts are inspected, and nothing is
    generated. The other checkpoint is asked the same in the same way.

    Raises:
        RecipeError: An option affects generation, and there is no data.
    """
    quiet_libraries()
    if request.engine not in ENGINES:
        raise RecipeError(f"--engine {request.engine}: expected one of {list(ENGINES)}")
    checkpoint = Path(request.checkpoint)
    if request.data is None:
        engine = request.engine if request.engine != TRANSFORMERS else None
        reject_generation(
            {**request.generation, **given(engine=engine, compare=request.compare, **request.reading_options)}
        )
    options = replace(
        options_of_run(checkpoint),
        batch_size=request.batch_size,
        attention=request.attention,
        without=request.ablate_image,
        **given(samples=request.samples, seed=request.seed, max_new_tokens=request.max_new_tokens),
    )
    template = request.template or trained_settings(checkpoint)["template"]
    json_path, html_path = paired_paths(request.out, NAME)
    with tempfile.TemporaryDirectory(prefix="vgpo-") as scratch:
        questions = questions_for(request, template, Path(scratch))
        asked = Asked(questions, options, request.dtype, request.engine)
        write(json_path, asked, request.checkpoint, request.compare, Path(scratch))
    write_file(html_path, Inspection.read(json_path).to_html().encode("utf-8"))
    say(Console(), f"inspection: {html_path} (numbers: {json_path})")


def questions_for(request: Request, template: str, scratch: Path) -> QuestionSet:
    """Rows of the dataset that was named, or the rollouts that the checkpoint's run stored."""
    if request.data is None:
        return stored_of_run(request.checkpoint, template, request.rows)
    return rows_of_set(
        request.checkpoint, request.data, template, request.rows, reading=request.reading, folder=scratch
    )


def given(**options: Any) -> dict[str, Any]:
    """Those of the command's options that the user gave."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def reject_generation(options: Mapping[str, Any]) -> None:
    """Without a dataset nothing is generated.

    Raises:
        RecipeError: An option says how to.
    """
    if options:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise RecipeError(
            f"{names}: without --data, `vgpo inspect` reads the responses that the checkpoint's run stored and "
            f"generates none. Name a dataset with --data FILE, or leave {names} out"
        )


def options_of_run(checkpoint: Path) -> Options:
    """As the run of the checkpoint samples responses and weighs them."""
    config, trained = config_of_checkpoint(checkpoint), trained_settings(checkpoint)
    return Options(
        max_new_tokens=trained["max_completion_length"],
        settings=settings_of_run(config),
        chat_template_kwargs=trained["chat_template_kwargs"] or {},
        **{name: config[name] for name in ("temperature",) if name in config},
    )


def settings_of_run(config: Mapping[str, Any]) -> VGPOSettings:
    """The run's own settings of the equations; those of an adaptive shaping at full strength."""
    kind = AdaptiveSettings if config.get("shaping") == "adaptive" else VGPOSettings
    settings = kind(**{name: config[name] for name in vars(kind()) if name in config})
    return settings.vgpo if isinstance(settings, AdaptiveSettings) else settings


def write(path: Path, asked: Asked, checkpoint: str, compare: str | None, scratch: Path) -> None:
    """Write the inspection of one model or two; they are never held at the same time."""
    if compare is None:
        write_inspection(path, *asked.of(checkpoint, name_of(checkpoint)))
        return
    first = scratch / "first.json"
    name, other = different_names(checkpoint, compare)
    write_inspection(first, *asked.of(checkpoint, name))
    head, questions = asked.of(compare, other)
    write_inspection(
        path, compared_heads(read_head(first), head), compared_questions(iter_questions(first), questions)
    )


def rows_of_set(
    checkpoint: str, data: str, template: str, rows: str | None, *, reading: Reading, folder: Path
) -> QuestionSet:
    """The requested rows of a dataset, without responses."""
    source = PlainCheckpoint(checkpoint)
    requested = list(range(NUM_ROWS)) if rows is None else parse_rows(rows)
    prompts = load_prompts(
        data,
        template,
        toy_folder=folder,
        reading=reading,
        limit=max(requested) + 1,
        forbidden=forbidden_tokens(source, processor_of(source), trust_remote_code=False),
    )
    chosen = clip_rows(requested, len(prompts), f"{data} has {len(prompts)} rows", named=rows is not None)
    return QuestionSet(prompts.select(chosen), chosen)


def stored_of_run(checkpoint: str, template: str, rows: str | None) -> QuestionSet:
    """The requested groups of rollouts that the checkpoint's run stored, the newest first."""
    path = Path(checkpoint)
    run = run_of_checkpoint(path)
    if run is None:
        raise RecipeError(
            f"{checkpoint!r} is not in a run folder, such as RUN/checkpoints/checkpoint-80, so there are "
            "no stored rollouts to look at. Name a dataset: --data FILE"
        )
    requested = list(range(NUM_ROWS)) if rows is None else parse_rows(rows)
    return stored_questions(RunFolder.open(run), path.resolve(), template, requested)


def processor_of(source: Any) -> ProcessorMixin:
    return load_processor(source, trust_remote_code=False, min_pixels=None, max_pixels=None)


def parse_rows(rows: str) -> list[int]:
    """The numbers in `0-49`, `0,3,7` or both, in their order and each once.

    Raises:
        RecipeError: It is neither.
    """
    numbers: dict[int, None] = {}
    for part in rows.split(","):
        found = ROWS.fullmatch(part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise RecipeError(
                f"--rows {rows}: found {part!r}, expected numbers from 0 and ranges, as in 0-49 or 0,3,7"
            )
        numbers |= dict.fromkeys(range(first, last + 1))
    return list(numbers)


def clip_rows(requested: list[int], number: int, has: str, *, named: bool) -> list[int]:
    """The requested rows that exist.

    Raises:
        RecipeError: One that the user named is not.
    """
    beyond = [row for row in requested if row >= number]
    if beyond and named:
        raise RecipeError(f"--rows: there is no row {beyond[0]}: {has}, counted from 0")
    return [row for row in requested if row < number]


def name_of(checkpoint: str) -> str:
    """`run/checkpoint-80` for RUN/checkpoints/checkpoint-80, else what it is called."""
    run = run_of_checkpoint(Path(checkpoint))
    return f"{run.absolute().name}/{Path(checkpoint).resolve().name}" if run else checkpoint


def different_names(checkpoint: str, other: str) -> tuple[str, str]:
    """Distinct names of two checkpoints, or the parts in which paths with one name differ.

    Raises:
        RecipeError: It is one checkpoint.
    """
    names = name_of(checkpoint), name_of(other)
    if names[0] != names[1]:
        return names
    paths = [Path(one).resolve().parts for one in (checkpoint, other)]
    while all(paths) and paths[0][-1] == paths[1][-1]:
        paths = [parts[:-1] for parts in paths]
    while all(paths) and paths[0][0] == paths[1][0]:
        paths = [parts[1:] for parts in paths]
    if not all(paths):
        raise RecipeError(f"--compare {other} is the checkpoint itself, or contains it; name another one")
    return "/".join(paths[0]), "/".join(paths[1])
