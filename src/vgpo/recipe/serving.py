"""The vLLM server of a recipe."""

import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PretrainedConfig, ProcessorMixin
from trl.import_utils import is_vllm_available

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import Checkpoint, load, load_processor, source_of
from vgpo.recipe.recipe import Recipe
from vgpo.recipe.setup import Setup
from vgpo.vllm.offline import OfflineEngine
from vgpo.vllm.prompts import processor_options
from vgpo.vllm.server import ServerSettings, running_server

logger = logging.getLogger(__name__)


def server_settings(setup: Setup) -> ServerSettings:
    """Settings of a recipe's server: the trainer's checkpoint, precision and pixel limits.

    Raises:
        RecipeError: The checkpoint cannot be loaded.
    """
    run, config, model = setup.recipe.run, setup.recipe.config, setup.recipe.model
    source = source_of(model)
    # TRL's default would allow every machine on the network to send weights.
    host = "127.0.0.1" if config.vllm_server_host == "0.0.0.0" else config.vllm_server_host
    sets_limits = run.min_pixels is not None or run.max_pixels is not None
    longest = None if run.max_prompt_length is None else run.max_prompt_length + config.max_completion_length
    return ServerSettings(
        model=source.name,
        url=config.vllm_server_base_url or f"http://{host}:{config.vllm_server_port}",
        dtype=engine_dtype(setup.recipe),
        revision=None if source.is_folder or source.revision == "main" else source.revision,
        processor=processor_options(setup.processor) if sets_limits else {},
        max_model_length=config.vllm_max_model_length or longest,
        tensor_parallel_size=config.vllm_tensor_parallel_size,
        trust_remote_code=config.trust_remote_code,
    )


@contextmanager
def server_of(setup: Setup) -> Iterator[None]:
    """Run the recipe's own server during the block, if it has one; the first process starts it.

    Raises:
        EngineError: It cannot be started.
    """
    run, config = setup.recipe.run, setup.recipe.config
    if run.vllm_server_devices is None or config.process_index != 0:
        yield
        return
    settings = server_settings(setup)
    with tempfile.NamedTemporaryFile(prefix="vgpo-vllm-", suffix=".log", delete=False) as log:
        path = Path(log.name)
    logger.warning("Starting the vLLM server at %s; its log is %s.", settings.url, path)
    with running_server(settings, run.vllm_server_devices, path, timeout=config.vllm_server_timeout):
        yield


def offline_engine(source: Checkpoint, processor: ProcessorMixin) -> OfflineEngine:
    """A checkpoint in vLLM, in this process, for evaluation.

    Raises:
        EngineError: vLLM is not installed.
        RecipeError: The checkpoint is an adapter.
    """
    if source_of(source).adapter_config is not None:
        name = source.model_name_or_path
        raise RecipeError(f"vLLM cannot load the adapter {name!r}: `vgpo merge {name} FOLDER`, and name FOLDER")
    config = load(AutoConfig, source, trust_remote_code=False)
    return OfflineEngine(source_of(source).name, processor, config, dtype=stored_dtype(source, config))


def responses_of_vllm(
    source: Checkpoint, rows: Dataset, *, samples: int, seed: int | None, **decoding: Any
) -> list[list[list[int]]]:
    """Token ids of responses to each row, from a separate process, which frees its memory when it ends.

    Args:
        source: The checkpoint.
        rows: From `vgpo.data.to_prompts`.
        samples: Responses per row.
        seed: Sampling seed; None for vLLM's own.
        decoding: As in `OfflineEngine.respond`.

    Raises:
        EngineError, RecipeError: As in `offline_engine`.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_responses_of_vllm, source, rows, samples, seed, decoding).result()


def _responses_of_vllm(
    source: Checkpoint, rows: Dataset, samples: int, seed: int | None, decoding: dict[str, Any]
) -> list[list[list[int]]]:
    processor = load_processor(source, trust_remote_code=False, min_pixels=None, max_pixels=None)
    repeated = [row for row in rows for _ in range(samples)]
    seeds = [] if seed is None else [seed + number for number in range(len(repeated))]
    responses = offline_engine(source, processor).respond(repeated, seeds=seeds, **decoding)
    token_ids = [one.token_ids for one in responses]
    return [token_ids[first : first + samples] for first in range(0, len(token_ids), samples)]


def unsupported_vllm() -> str | None:
    """TRL's message about an unsupported installed version of vLLM, or None."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_vllm_available()
    return next((str(warning.message) for warning in said if "vLLM" in str(warning.message)), None)


def engine_dtype(recipe: Recipe) -> str:
    """Dtype of vLLM: `vllm_dtype`, else that of the policy, under autocast or as loaded."""
    config, model = recipe.config, recipe.model
    if config.vllm_dtype != "auto":
        return config.vllm_dtype
    if config.bf16 or config.fp16:
        return "bfloat16" if config.bf16 else "float16"
    return stored_dtype(model, load(AutoConfig, model, trust_remote_code=config.trust_remote_code))


def stored_dtype(model: Checkpoint, config: PretrainedConfig) -> str:
    """Dtype of a checkpoint's weights, unless `dtype` names another; vLLM's `auto` converts float32 to bfloat16."""
    named = None if model.dtype in (None, "auto") else model.dtype
    return str(named or config.dtype or "float32").removeprefix("torch.")
