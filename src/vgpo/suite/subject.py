"""What is evaluated on a suite, and how: the request, and the model that answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import Model, get_model
from rich.text import Text

from vgpo.data import Reading
from vgpo.evaluation.benchmark_rows import DROPPING
from vgpo.evaluation.benchmarks import Benchmark
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import Protocol
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.policies import ENGINES, TRANSFORMERS, CheckpointOptions, OpenCheckpoint, open_checkpoint
from vgpo.suite.folder import EvaluationRecord
from vgpo.suite.prompts import THINK_BOXED
from vgpo.suite.provider import CheckpointAPI
from vgpo.vllm.prompts import EngineError

SERVED_MAX_NEW_TOKENS = 2048  # of a model that a server answers with, whose training is not known
# `vllm serve` would fill in what the checkpoint's generation config recommends.
NEUTRAL_SAMPLING = {"top_k": -1, "repetition_penalty": 1.0}
ENGINES_EXPECTED = f"Correct that, or name another engine: {', '.join(ENGINES)}, or a provider of inspect-ai."
OPENAI = "openai-api"  # the provider of inspect-ai that passes further fields of a request on


@dataclass(frozen=True, kw_only=True)
class SuiteRequest(CheckpointOptions):
    """What is evaluated, and how; None stands for what the checkpoint was trained with.

    Attributes:
        checkpoint: Folder, hub name or `toy`; of another engine, the name under which it serves the model.
        benchmarks: The tasks, in this order.
        data: Where rows are, as in `source_of`.
        protocol: Decoding and scorer.
        out: The evaluation folder; a new one, or one of the same evaluation, which is resumed.
        engine: `transformers`, `vllm`, or a provider of inspect-ai, such as `openai-api/NAME`.
        batch_size: Questions answered at once, by a server at most twice as many.
        limit: Rows of each task that are asked at most.
        reading: How rows are read, as in `load_benchmark`.
        seed: Of samples.
    """

    checkpoint: str
    benchmarks: Sequence[Benchmark]
    data: Mapping[str, str] | Sequence[str] | str = ()
    protocol: Protocol
    out: Path
    engine: str = TRANSFORMERS
    batch_size: int = 64
    limit: int | None = None
    reading: Reading = DROPPING
    seed: int = 0


class Subject:
    """The model that is evaluated; its weights are loaded when `model` is asked for.

    Raises:
        RecipeError: The checkpoint cannot be loaded.
        EvaluationError: An option that a server cannot follow.
    """

    def __init__(self, request: SuiteRequest) -> None:
        self.request = request
        self.checkpoint: OpenCheckpoint | None = None
        if request.engine in ENGINES:
            self.checkpoint = open_checkpoint(
                request.checkpoint, request, engine=request.engine, untrained_template=THINK_BOXED
            )
        else:
            check_served(request)

    @property
    def template(self) -> str:
        return self.checkpoint.template if self.checkpoint else self.request.template or THINK_BOXED

    @property
    def max_new_tokens(self) -> int:
        if self.checkpoint:
            return self.checkpoint.max_new_tokens
        return self.request.max_new_tokens or SERVED_MAX_NEW_TOKENS

    @property
    def forbidden(self) -> Sequence[str]:
        """What no problem may contain."""
        return self.checkpoint.forbidden() if self.checkpoint else ()

    @property
    def extra_body(self) -> dict[str, float] | None:
        """Further fields of each request."""
        return NEUTRAL_SAMPLING if self.request.engine.split("/")[0] == OPENAI else None

    def record(self) -> EvaluationRecord:
        """What is evaluated, as the folder keeps it, without tasks."""
        request, checkpoint = self.request, self.checkpoint
        return EvaluationRecord(
            checkpoint=request.checkpoint,
            checkpoint_digest=checkpoint.digest() if checkpoint else "",
            engine=request.engine,
            dtype=request.dtype,
            protocol=request.protocol.name,
            template=self.template,
            chat_template_kwargs=checkpoint.chat_template_kwargs if checkpoint else {},
            max_new_tokens=self.max_new_tokens,
            image_size=dict(checkpoint.processor.image_processor.size) if checkpoint else {},
            seed=request.seed,
            limit=request.limit,
            tasks={},
        )

    @cached_property
    def model(self) -> Model:
        """The model for inspect-ai.

        Raises:
            EvaluationError: inspect-ai has no such provider, or it lacks a package or a key.
            RecipeError, EngineError: The checkpoint cannot be loaded.
        """
        request = self.request
        name = f"vgpo/{request.checkpoint}" if self.checkpoint else f"{request.engine}/{request.checkpoint}"
        options: dict[str, Any] = {}
        if self.checkpoint:
            options = {
                "engine": request.engine,
                "batch_size": request.batch_size,
                "dtype": request.dtype,
                "min_pixels": request.min_pixels,
                "max_pixels": request.max_pixels,
            }
        try:
            return get_model(name, memoize=False, **options)  # its weights go with it
        except (RecipeError, EngineError):
            raise
        except (ValueError, PrerequisiteError) as error:
            raise EvaluationError(f"--engine {request.engine}: {reason_of(error)} {ENGINES_EXPECTED}") from error

    def close(self) -> None:
        """End the thread of the model, if it was loaded."""
        model = vars(self).pop("model", None)
        if model is not None and isinstance(model.api, CheckpointAPI):
            model.api.close()


def reason_of(error: ValueError | PrerequisiteError) -> str:
    """What inspect-ai says, as one line without its markup."""
    if not isinstance(error, PrerequisiteError):
        return str(error)
    return " ".join(Text.from_markup(str(error.message)).plain.removeprefix("ERROR: ").split())


def check_served(request: SuiteRequest) -> None:
    """Raise EvaluationError for an option that a server decides on."""
    given = {
        "--dtype": request.dtype != "auto",
        "--min-pixels": request.min_pixels,
        "--max-pixels": request.max_pixels,
    }
    for option, value in given.items():
        if value:
            raise EvaluationError(
                f"{option} has no effect with --engine {request.engine}: the server loads the model and resizes "
                "images. Remove it, and set it where the server is started"
            )
