"""Which checkpoint a run is resumed from, and the rollouts that are still to be trained on, for any host."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from vgpo.checkpoints import CheckpointError, CheckpointStore, Found
from vgpo.policy.prompts import EncodedPrompt
from vgpo.training.batches import Batch, to_device

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Files of a checkpoint: what the run was, and what its folder held.
IDENTITY, FOLDER_STATE = "run_identity.json", "run_folder.json"


def run_on_main_process(compute: Callable[[], T]) -> T:
    """What the main process computes, on every process; what it raises ends them all."""
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = compute()
        except Exception as caught:  # noqa: BLE001  # whatever it is, the others would wait forever
            error = caught
    failure = None if error is None else f"{type(error).__name__}: {error}"
    result, failure = broadcast_object_list([result, failure])
    if failure is not None:
        raise error or CheckpointError(f"The main process failed: {failure}")
    return result


def newest_checkpoint(store: CheckpointStore) -> Found:
    """The newest intact checkpoint, as the main process finds it; the folder is one for all processes."""
    return run_on_main_process(store.newest_valid)


def choose_checkpoint(requested: str | Path | bool | Found, store: CheckpointStore) -> Path:
    """The checkpoint to resume from: a named one, the one that was found, or with True the newest intact one.

    Raises:
        CheckpointError: there is none, or the named one is not intact.
    """
    if isinstance(requested, str | Path):
        if reason := run_on_main_process(lambda: CheckpointStore.verify(Path(requested))):
            raise CheckpointError(f"{requested} cannot be resumed: {reason}. Name another checkpoint.")
        return Path(requested)
    found = requested if isinstance(requested, Found) else newest_checkpoint(store)
    for name, reason in found.passed_over:
        logger.warning("Checkpoint %s is skipped: %s.", name, reason)
    if found.path is None:
        reasons = "".join(f" {name}: {reason}." for name, reason in found.passed_over)
        raise CheckpointError(
            f"{store.folder} holds no usable checkpoint.{reasons} Train without resume_from_checkpoint in another "
            "output_dir."
        )
    return found.path


def require_no_checkpoints(store: CheckpointStore) -> None:
    """A training from step 0 would replace the checkpoints that are there.

    Raises:
        CheckpointError: there are some.
    """
    if steps := sorted(store.steps()):
        raise CheckpointError(
            f"{store.folder} already holds checkpoints (steps {', '.join(map(str, steps))}), which a training from "
            "step 0 would replace. Pass resume_from_checkpoint=True to resume, choose another output_dir, or move or "
            "delete them to start over."
        )


def changed_values(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A text for each name whose value is not the saved one."""
    return [f"{name} was {saved[name]}, is {value}" for name, value in now.items() if value != saved[name]]


def buffer_state(batches: Sequence[Batch]) -> dict[str, Any]:
    """The rollouts of a generation that has updates left, for a checkpoint; each prompt once, rows have its number."""
    prompts = {id(prompt): prompt for batch in batches for prompt in batch["prompts"]}
    numbers = {key: number for number, key in enumerate(prompts)}
    numbered = [{**batch, "prompts": [numbers[id(prompt)] for prompt in batch["prompts"]]} for batch in batches]
    return {"prompts": [vars(prompt) for prompt in prompts.values()], "batches": numbered}


def restored_buffer(state: dict[str, Any], device: torch.device) -> list[Batch]:
    """The rollouts that `buffer_state` returned, on a device."""
    prompts = [EncodedPrompt(**to_device(fields, device)) for fields in state["prompts"]]
    return [
        {**to_device(batch, device), "prompts": [prompts[number] for number in batch["prompts"]]}
        for batch in state["batches"]
    ]
