"""Consistency checks of recipe fields, for all hosts."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from vgpo.places import TOY_MODEL
from vgpo.recipe.errors import RecipeError

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
DOWNLOAD = "download it (`hf download {name} --revision COMMIT --local-dir FOLDER`) and name the folder"
TRUNCATED_FIX = "set vllm_importance_sampling_mode: token_truncate, or sample from the complete distribution"


def check_model_name(name: str | None, *, where: str) -> None:
    """Check that a recipe names its model."""
    if name is None:
        raise RecipeError(f"{where}: model_name_or_path is missing; name a checkpoint, or 'toy' for the toy model")


def check_num_weights(rewards: Sequence[str], weights: Sequence[float] | None, *, where: str) -> None:
    """Check that there is one weight per reward, or none."""
    if weights is not None and len(weights) != len(rewards):
        raise RecipeError(
            f"{where}: reward_weights has {len(weights)} values ({weights}) for {len(rewards)} rewards "
            f"({rewards}); give one for each, in the same order"
        )


def check_adapters(*, lora_vision: bool, freeze: Sequence[str], use_peft: bool, where: str) -> None:
    """Check the consistency of the LoRA fields."""
    if lora_vision and not use_peft:
        raise RecipeError(f"{where}: lora_vision has no effect without use_peft; set use_peft: true or remove it")
    if freeze and use_peft:
        raise RecipeError(
            f"{where}: freeze ({freeze}) has no effect with use_peft, which trains only adapters; remove it, "
            "and set lora_vision for adapters in the vision tower and the projector"
        )


def truncated_sampling_fault(
    *, top_p: float, top_k: int, min_p: float | None = None, correction: bool, mode: str
) -> str | None:
    """What is wrong with importance ratios of complete responses under truncated sampling, or None.

    An engine renormalizes the probabilities that top_p, top_k or min_p keep. The policy does not, so that the ratio of
    policy to engine is the kept probability: just below 1 for each token. Its product over a response falls
    exponentially with the length: 0.995 per token is 0.007 for 1,000 tokens.

    Args:
        top_p, top_k, min_p: As in `transformers.GenerationConfig`. 1, at most 0, and None or 0 keep all.
        correction: Whether the loss is multiplied with the ratio (`vllm_importance_sampling_correction`).
        mode: `vllm_importance_sampling_mode`.
    """
    truncated = {"top_p": top_p < 1 and top_p, "top_k": max(top_k, 0), "min_p": min_p}
    kept = [f"{name} {value:g}" for name, value in truncated.items() if value]
    if not (correction and mode.startswith("sequence_") and kept):
        return None
    return (
        f"with {', '.join(kept)} the importance ratio of a complete response ({mode}) falls exponentially with its "
        "length, and the loss with it"
    )


def check_remote_code(name: str, revision: str | None, *, trust_remote_code: bool, where: str) -> None:
    """Check that code of a checkpoint, if it may run, is pinned to one commit, and log a warning with the commit.

    Raises:
        RecipeError: The checkpoint is on the hub, where the code of a branch or tag can change at any time.
    """
    if not trust_remote_code or name == TOY_MODEL:
        return
    if Path(name).is_dir():
        logger.warning("trust_remote_code: Python code in the folder %s will run.", Path(name).resolve())
        return
    if not COMMIT.fullmatch(revision or ""):
        raise RecipeError(
            f"{where}: trust_remote_code with model_revision {revision!r} would run whatever code {name} has when the "
            "run starts. Read the code at one commit and set model_revision to its 40 characters (the page of the "
            f"repository lists them under 'History'), or {DOWNLOAD.format(name=name)}"
        )
    logger.warning("trust_remote_code: Python code of %s at commit %s will run.", name, revision)
