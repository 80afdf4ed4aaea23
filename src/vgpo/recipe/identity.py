"""Resuming a run: from which checkpoint, and whether it is still the same run."""

import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from vgpo.checkpoints import CheckpointError, CheckpointStore, Found
from vgpo.data import template_text
from vgpo.data.fingerprint import fingerprint
from vgpo.recipe.recipe import RecipeError
from vgpo.recipe.setup import Setup
from vgpo.rewards import REWARDS
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.storage import plain
from vgpo.terminal import say
from vgpo.training.resuming import newest_checkpoint
from vgpo.trl import VGPOConfig
from vgpo.trl.resumable import IDENTITY

# Fields by which a run is watched, kept or started; another value of them makes no other run.
IGNORED_FIELDS = (
    "output_dir", "run_dir", "run_name", "resume", "allow_changes", "alarm", "logging_", "log_", "max_rollout_bytes",
    "report_to", "project", "trackio_", "disable_tqdm", "save_", "push_to_hub", "hub_", "eval_", "evaluate_before",
    "dataloader_", "ddp_timeout", "vllm_server_timeout", "do_", "local_rank", "debug", "train_data", "template",
    "rewards", "num_processes",
)  # fmt: skip


@dataclass(frozen=True)
class Resume:
    """Where a run is resumed: from a checkpoint, or from step 0 if there is none yet."""

    found: Found
    changes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.found.step or 0


def run_identity(setup: Setup) -> dict[str, Any]:
    """What must be the same when a run is resumed: data, template, rewards, image sizes, model and settings."""
    run, config = setup.recipe.run, setup.recipe.config
    settings = plain({**asdict(run), **config.to_dict(), **asdict(setup.recipe.model)}, other=str)
    return {
        "data set": fingerprint(setup.prompts),
        "template": digest(template_text(run.template)),
        "rewards": {name: source_digest(name) for name in run.rewards},
        "image sizes": plain(dict(setup.processor.image_processor.size), other=str),
        "processes": config.world_size,
        **{name: value for name, value in sorted(settings.items()) if not name.startswith(IGNORED_FIELDS)},
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def source_digest(reward: str) -> str | None:
    """Of the source file of a user-defined reward."""
    if reward in REWARDS:
        return None
    place = reward.rpartition(":")[0]
    if place.endswith(".py"):
        return digest(Path(place).expanduser().read_text(encoding="utf-8"))
    return digest(inspect.getsource(importlib.import_module(place)))


def find_checkpoint(folder: RunFolder, config: VGPOConfig, console: Console) -> Found:
    """The newest intact checkpoint of a run folder, or none if none was saved yet; says which are passed over.

    Raises:
        RunFolderError: The run is finished, and the recipe does not train further.
        CheckpointError: There are checkpoints, and none of them can be used.
    """
    check_not_finished(folder, config)
    found = newest_checkpoint(CheckpointStore(folder.checkpoints_path, keep=None))
    if found.path is None and found.passed_over:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in found.passed_over)
        raise CheckpointError(
            f"{folder.checkpoints_path} holds {len(found.passed_over)} checkpoint(s), and none can be used:\n{listed}"
            "\nNothing was changed. Repair one of them, or resume with the version of vgpo that wrote it. To start "
            "from step 0 instead, choose a new run_dir; this one stays as it is."
        )
    for name, reason in found.passed_over:
        say(console, f"passed over: {name}: {reason}")
    return found


def check_not_finished(folder: RunFolder, config: VGPOConfig) -> None:
    """Whether a recipe trains further than the run in `folder` did, if that is finished.

    Raises:
        RunFolderError: It does not.
    """
    finished = folder.read_finished()
    if finished is None:
        return
    by_steps = config.max_steps > 0
    planned, done = (config.max_steps, finished.step) if by_steps else (config.num_train_epochs, finished.epoch)
    if planned > done:
        return
    raise RunFolderError(
        f"{folder.path} is finished: {finished.step} steps, {finished.epoch:g} epochs; the recipe asks for "
        f"{'max_steps' if by_steps else 'num_train_epochs'}={planned:g}. Nothing was changed. To train further, raise "
        "max_steps or num_train_epochs and set allow_changes: true. To train again, choose a new run_dir. "
        f"`vgpo eval {folder.final_path}` evaluates it."
    )


def resume_from(found: Found, identity: Mapping[str, Any], *, allow_changes: bool, console: Console) -> Resume:
    """How the run is resumed from a checkpoint of `find_checkpoint`; says so.

    Raises:
        RecipeError: It is of a run with other data, rewards or settings, and `allow_changes` does not say that this
            is meant; names what differs.
    """
    if found.path is None:
        say(console, "no checkpoint was saved yet: the run starts from step 0")
        return Resume(found)
    changes = differences(json.loads((found.path / IDENTITY).read_text(encoding="utf-8")), identity)
    if changes and not allow_changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise RecipeError(
            f"{found.path} is of another run:\n{listed}\nUndo the changes, start a new run_dir, or set "
            "allow_changes: true to go on with them; the run folder will record it."
        )
    say(console, f"going on from {found.path}, step {found.step}")
    for change in changes:
        say(console, f"changed: {change}")
    return Resume(found, changes)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value is not what it was."""
    missing = "not there"
    return [
        f"{name} was {shorten(saved.get(name, missing))}, is {shorten(now.get(name, missing))}"
        for name in dict.fromkeys([*saved, *now])
        if saved.get(name, missing) != now.get(name, missing)
    ]


def shorten(value: Any) -> str:
    """A value as text; of a digest its first characters."""
    text = json.dumps(value)
    return f"{text[:60]}…" if len(text) > 60 else text
