"""Run a checkpoint on questions, with transformers or vLLM."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import ProcessorMixin

from vgpo.evaluation.completions import Completion, complete, context_length_of, oversized
from vgpo.policy.generation import evaluation_mode, greedy_decoding, sampled_decoding
from vgpo.recipe.adapters import Source, with_bases
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import (
    Checkpoint,
    PlainCheckpoint,
    check_image_token,
    forbidden_tokens,
    load_model,
    load_processor,
    source_of,
)
from vgpo.recipe.serving import offline_engine
from vgpo.run.trained import run_of_checkpoint, trained_settings

TRANSFORMERS, VLLM = "transformers", "vllm"
ENGINES = (TRANSFORMERS, VLLM)

Row = Mapping[str, Any]


class Policy(Protocol):
    """Answers rows with `prompt` and `images`, from `vgpo.data.to_prompts`."""

    def complete(
        self, rows: Sequence[Row], *, max_new_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        """A response to each row; greedy at temperature 0.

        Args:
            rows: One batch.
            max_new_tokens: Longest response, in tokens.
            temperature: 0, or the temperature for sampling from the full softmax.
            seeds: One per sample; transformers samples the complete batch with the first.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """How a checkpoint is loaded and answers; None stands for what it was trained with.

    Attributes:
        template: Of prompts.
        max_new_tokens: Longest response, in tokens.
        min_pixels, max_pixels: Limits of an image; by default those saved with the checkpoint.
        dtype: Of the weights; `auto` is that of the checkpoint.
    """

    template: str | None = None
    max_new_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    dtype: str = "auto"


AS_TRAINED = CheckpointOptions()


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """A checkpoint before its weights are loaded: everything needed to check a dataset, and its training settings.

    Attributes:
        name: Folder, hub name, or `toy`.
        source: The checkpoint fields for the loaders.
        processor: With the pixel limits of the evaluation.
        template: Of prompts.
        max_new_tokens: Longest response, in tokens.
        chat_template_kwargs: As in training.
        engine: One of `ENGINES`.
    """

    name: str
    source: Checkpoint
    processor: ProcessorMixin
    template: str
    max_new_tokens: int
    chat_template_kwargs: dict[str, Any]
    engine: str

    def forbidden(self) -> list[str]:
        """Texts that no problem may contain, see `forbidden_tokens`."""
        return forbidden_tokens(self.source, self.processor, trust_remote_code=False)

    def policy(self) -> Policy:
        """Load the weights of the checkpoint.

        Raises:
            RecipeError: It cannot be loaded.
            EngineError: vLLM is not installed.
        """
        return POLICIES[self.engine](self)

    def digest(self) -> str:
        """SHA-256 (hex) over the checkpoint and, for an adapter, its bases: files of a folder, commits on the hub."""
        chain = with_bases(source_of(self.source), trust_remote_code=False)
        return hashlib.sha256("\n".join(map(source_digest, chain)).encode()).hexdigest()


def open_checkpoint(
    name: str,
    options: CheckpointOptions = AS_TRAINED,
    *,
    engine: str = TRANSFORMERS,
    untrained_template: str = "plain",
) -> OpenCheckpoint:
    """Read processor and settings of a checkpoint.

    Template, response length and chat template arguments default to those of the run that the checkpoint belongs to,
    pixel limits to those saved with the checkpoint. A checkpoint without a run gets the template `untrained_template`.

    Raises:
        RecipeError: There is no such engine or checkpoint.
    """
    if engine not in ENGINES:
        raise RecipeError(f"--engine {engine}: expected one of {list(ENGINES)}")
    trained = trained_settings(Path(name))
    own_template = trained["template"] if run_of_checkpoint(Path(name)) else untrained_template
    source = PlainCheckpoint(name, options.dtype)
    return OpenCheckpoint(
        name=name,
        source=source,
        processor=load_processor(
            source, trust_remote_code=False, min_pixels=options.min_pixels, max_pixels=options.max_pixels
        ),
        template=options.template or own_template,
        max_new_tokens=options.max_new_tokens or trained["max_completion_length"],
        chat_template_kwargs=trained["chat_template_kwargs"] or {},
        engine=engine,
    )


class TransformersPolicy:
    """A checkpoint in transformers, on the GPU if there is one."""

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self.checkpoint = checkpoint
        model = load_model(checkpoint.source, trust_remote_code=False)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        check_image_token(self.model, checkpoint.processor)
        self.context_length = context_length_of(self.model.config)

    def complete(
        self, rows: Sequence[Row], *, max_new_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        """As in `Policy`."""
        processor = self.checkpoint.processor
        decoding = (
            sampled_decoding(self.model, processor, max_new_tokens, temperature)
            if temperature
            else greedy_decoding(self.model, processor, max_new_tokens)
        )
        with evaluation_mode(self.model):
            return complete(
                self.model,
                processor,
                rows,
                decoding,
                self.checkpoint.chat_template_kwargs,
                seed=seeds[0] if seeds else 0,
                context_length=self.context_length,
            )


class VllmPolicy:
    """A checkpoint in vLLM, in this process."""

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.engine = offline_engine(checkpoint.source, checkpoint.processor)

    def complete(
        self, rows: Sequence[Row], *, max_new_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        """As in `Policy`."""
        checkpoint = self.checkpoint
        responses = self.engine.respond(
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=seeds,
            chat_template_kwargs=checkpoint.chat_template_kwargs,
        )
        texts = checkpoint.processor.batch_decode([one.token_ids for one in responses], skip_special_tokens=True)
        return [
            oversized(one.num_prompt_tokens)
            if one.oversized
            else Completion(text, one.num_prompt_tokens, len(one.token_ids), truncated=not one.ended)
            for text, one in zip(texts, responses, strict=True)
        ]


POLICIES: dict[str, Callable[[OpenCheckpoint], Policy]] = {TRANSFORMERS: TransformersPolicy, VLLM: VllmPolicy}


def source_digest(source: Source) -> str:
    """Digest of the names and contents of a folder's files, or of a hub checkpoint's name and commit."""
    if not source.is_folder:
        config = source.file("adapter_config.json") or source.file("config.json")
        return f"{source.name} {Path(config or '').parent.name}"  # the cache has a folder for each commit
    files = sorted(file for file in Path(source.name).iterdir() if file.is_file() and not file.name.startswith("."))
    with ThreadPoolExecutor(4, "vgpo-digest") as threads:  # hashing releases the interpreter's lock
        digests = threads.map(digest_of_file, files)
        return "\n".join(f"{file.name} {digest}" for file, digest in zip(files, digests, strict=True))


def digest_of_file(file: Path) -> str:
    """SHA-256 (hex) of the content of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
