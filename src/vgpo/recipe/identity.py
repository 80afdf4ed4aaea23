"""Resume a run: choose the checkpoint, and check that it is still the same run."""

import hashlib
import importlib
import json
import os.path
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from transformers import PreTrainedModel, ProcessorMixin

from vgpo.checkpoints import MANIFEST, CheckpointError, CheckpointStore, Found, weight_hash
from vgpo.data import template_text
from vgpo.data.fingerprint import fingerprint
from vgpo.recipe.errors import RecipeError
from vgpo.rewards import REWARDS, load_reward, reward_name
from vgpo.run import Damage, RunFolder, RunFolderError, examine
from vgpo.run.records import Finished, FolderState
from vgpo.run.storage import plain, read_object
from vgpo.terminal import say
from vgpo.training.resuming import FOLDER_STATE, IDENTITY

if TYPE_CHECKING:
    from vgpo.recipe.setup import Setup
    from vgpo.trl import VGPOConfig

# Fields for monitoring, storing or starting a run, which may change on resume. For data, template, rewards and model,
# the content is compared, not the location.
IGNORED_FIELDS = (
    "output_dir", "run_dir", "run_name", "resume", "allow_changes", "alarm", "logging_", "log_", "max_rollout_bytes",
    "report_to", "project", "trackio_", "disable_tqdm", "save_", "push_to_hub", "hub_", "eval_", "evaluate_before",
    "dataloader_", "ddp_timeout", "vllm_server_timeout", "do_", "local_rank", "debug", "train_data", "template",
    "rewards", "num_processes", "model_name_or_path",
)  # fmt: skip
# Provenance fields of a config or a processor.
ORIGIN = ("_name_or_path", "name_or_path", "transformers_version", "auto_map", "_commit_hash")
# Tokenizer settings that each call sets.
CALL_SETTINGS = ("padding", "truncation")
# Identity key of each data field; also used in error messages.
DATA_SETS = {"data set": "train_data", "held-out set": "eval_data"}
# Keys of `model_identity`, which is compared last, so that recipe errors are found before a model is loaded.
MODEL_PARTS = ("start model", "model config")


class Lengths(Protocol):
    """The length of a training, on any host."""

    max_steps: int
    num_train_epochs: float


@dataclass(frozen=True)
class Resume:
    """The starting point of a resumed run: a checkpoint, or step 0 if there is none yet.

    identity, state: identity of the run and state of its folder when the checkpoint was saved, or when the run began.
    changes: changed settings and contents; damage: damaged files of the folder.
    """

    found: Found
    identity: dict[str, Any]
    state: FolderState
    changes: list[str] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)

    @property
    def step(self) -> int:
        return self.found.step or 0

    @property
    def record(self) -> list[str]:
        """The fields for resumes.jsonl."""
        return [*self.changes, *self.damage.lost, *self.damage.repaired.values()]


def run_identity(setup: "Setup") -> dict[str, Any]:
    """Everything that must be unchanged on resume except the model: data, template, rewards, processor, settings.

    Data, template and rewards are compared by content: folders may be moved.
    """
    run, config = setup.recipe.run, setup.recipe.config
    settings = plain({**asdict(run), **config.to_dict(), **asdict(setup.recipe.model)}, other=str)
    if isinstance(config.deepspeed, str):
        settings["deepspeed"] = digest(Path(config.deepspeed).read_text(encoding="utf-8"))
    return {
        **{name: setup.fingerprint(field) for name, field in DATA_SETS.items()},
        **suite_identity(setup),
        "template": digest(template_text(run.template)),
        "rewards": [[reward_name(load_reward(name)), source_digest(name)] for name in run.rewards],
        **processor_identity(setup.processor),
        "processes": config.world_size,
        **{name: value for name, value in sorted(settings.items()) if not name.startswith(IGNORED_FIELDS)},
    }


def suite_identity(setup: "Setup") -> dict[str, Any]:
    """The benchmarks of a run; empty if there are none, as in runs of earlier versions."""
    if not setup.tasks:
        return {}
    tasks = {task.benchmark.name: fingerprint(task.prompts) for task in setup.tasks}
    return {"benchmarks": {"protocol": setup.recipe.run.eval_suite_protocol, **tasks}}


def model_identity(model: PreTrainedModel) -> dict[str, str]:
    """Weights and config of the start model, which is also the reference model."""
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in ORIGIN}
    return {
        "start model": weight_hash(model.named_parameters()),
        "model config": digest(json.dumps(plain(config, other=str), sort_keys=True)),
    }


def processor_identity(processor: ProcessorMixin) -> dict[str, Any]:
    """Chat template, tokenizer and settings of a processor, by display name."""
    settings = plain({**processor.to_dict(), "chat_template": None}, other=str)
    return {
        "chat template": digest(json.dumps(processor.chat_template)),
        "tokenizer": tokenizer_digest(processor.tokenizer),
        **dict(flattened(settings)),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    content: Any = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    if tokenizer.is_fast:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        content = [content, {name: part for name, part in parts.items() if name not in CALL_SETTINGS}]
    return digest(json.dumps(plain(content, other=str), sort_keys=True))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """("image_processor.size.longest_edge", 200704) and so on."""
    for name, value in settings.items():
        if name in ORIGIN or value is None:
            continue
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def source_digest(reward: str) -> str | None:
    """Digest of the source file of a user-defined reward."""
    if reward in REWARDS:
        return None
    place = reward.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(importlib.import_module(place), "__file__", None)
    if file is None:  # a built-in module
        return None
    content = Path(file).expanduser().read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def find_checkpoint(folder: RunFolder, config: "VGPOConfig", console: Console) -> Found:
    """The newest intact checkpoint of a run folder, or none if none was saved yet; prints the skipped ones.

    Raises:
        RunFolderError: The run is finished, and the recipe does not train further.
        CheckpointError: There are checkpoints but none is usable; or all saved ones are missing.
    """
    check_not_finished(folder, config, console)
    store = CheckpointStore(folder.checkpoints_path, keep=None)
    store.pins()  # otherwise only a later save would find the damage
    found = store.newest_valid()
    if found.path is None:
        check_none_was_saved(folder, found)
    for name, reason in found.passed_over:
        say(console, f"skipped: {name}: {reason}")
    saved = folder.read_saved()
    if saved is not None and saved > (found.step or 0) and not os.path.lexists(store.path(saved)):
        say(console, f"skipped: {store.path(saved).name}: it was saved but is missing")
    return found


def check_none_was_saved(folder: RunFolder, found: Found) -> None:
    """Check that a run without a usable checkpoint has never saved one: otherwise its results would be overwritten.

    Raises:
        CheckpointError: It has.
    """
    path = folder.checkpoints_path
    advice = "To start from step 0 instead, choose a new run_dir; this one stays unchanged."
    if found.passed_over:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in found.passed_over)
        raise CheckpointError(
            f"{path} contains {len(found.passed_over)} checkpoint(s), and none is usable:\n{listed}\nNothing was "
            f"changed. Repair one of them, or resume with the version of vgpo that wrote it. {advice}"
        )
    saved = folder.read_saved()
    if saved is not None or os.path.lexists(folder.final_path):
        what = f"checkpoint-{saved} was saved" if saved is not None else f"{folder.final_path.name} exists"
        raise CheckpointError(
            f"{path} contains no checkpoint, although {what}: starting from step 0 would overwrite the results of the "
            f"run. Nothing was changed. Restore a checkpoint to resume it. {advice} To start over anyway, delete "
            f"{folder.path}."
        )


def check_not_finished(folder: RunFolder, config: Lengths, console: Console) -> None:
    """Check that a recipe trains further than the run in `folder`, if that is finished and its weights are intact.

    Raises:
        RunFolderError: It does not.
    """
    finished = intact_end(folder, console)
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


def intact_end(folder: RunFolder, console: Console) -> Finished | None:
    """The mark of a finished run; None if there is none or the final weights are damaged, which is printed."""
    try:
        finished = folder.read_finished()
    except RunFolderError:  # `examine` reports it
        return None
    if finished is None or not (folder.final_path / MANIFEST).exists():  # written by an earlier version
        return finished
    damage = CheckpointStore.verify(folder.final_path, more=True)
    if damage is None:
        return finished
    say(console, f"repaired: {folder.final_path}: {damage}; it is saved again from the newest checkpoint")
    return None


def resume_from(folder: RunFolder, config: "VGPOConfig", allow_changes: bool, console: Console) -> Resume:
    """The newest checkpoint of a run folder with its record of the run; damage of the folder is printed.

    Raises:
        One of the errors of `find_checkpoint`, and
        RunFolderError: Part of the folder is lost, and `allow_changes` is not set.
        CheckpointError: The checkpoint has no record of its run folder: another program saved it.
    """
    found = find_checkpoint(folder, config, console)
    identity, state = {}, FolderState()
    if found.path is not None:
        identity, state = read_note(found.path / IDENTITY), FolderState(**read_note(found.path / FOLDER_STATE))
    damage = examine(folder, found.step or 0, state)
    if found.path is None:
        try:
            identity = folder.read_identity()
        except RunFolderError as error:
            damage.lost.append(str(error))
    if damage.lost and not allow_changes:
        listed = "\n".join(f"  {lost}" for lost in damage.lost)
        raise RunFolderError(
            f"{folder.path} has lost data that the run wrote before step {found.step or 0}:\n{listed}\nNothing "
            "was changed. Restore it from a backup, or set allow_changes: true to resume without it; the run folder "
            "will record it."
        )
    if found.path is None:
        say(console, "no checkpoint was saved yet: the run starts from step 0")
    else:
        say(console, f"resuming from {found.path}, step {found.step}")
    for line in damage.lost:
        say(console, f"lost: {line}")
    for line in damage.repaired.values():
        say(console, f"repaired: {line}")
    return Resume(found, identity, state, damage=damage)


def read_note(path: Path) -> dict[str, Any]:
    """The record of the run in a checkpoint.

    Raises:
        CheckpointError: It has none.
    """
    note = read_object(path) if path.exists() else {}
    if not note:
        raise CheckpointError(
            f"{path.parent} has no record of its run ({path.name} is missing or empty): it was not saved by `vgpo "
            "train`, or by an earlier version. To train from its weights, name it as model_name_or_path of a new run."
        )
    return note


def with_changes(resume: Resume, identity: Mapping[str, Any], *, allow_changes: bool, console: Console) -> Resume:
    """The resume with the changes in `identity`, which are printed. The model is compared once it is loaded.

    Raises:
        RecipeError: There are changes and `allow_changes` is not set; lists them.
    """
    missing = set(MODEL_PARTS) - identity.keys()
    saved = {name: value for name, value in resume.identity.items() if name not in missing}
    changes = differences(saved, identity) if saved else []
    if changes and not allow_changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise RecipeError(
            f"{resume.found.path or 'The run folder'} belongs to another run:\n{listed}\nUndo the changes, start a "
            "new run_dir, or set allow_changes: true to resume with them; the run folder will record it."
        )
    for change in changes:
        if change not in resume.changes:
            say(console, f"changed: {change}")
    return replace(resume, changes=changes)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each changed value."""
    missing = "not there"
    return [
        f"{name} was {shorten(saved.get(name, missing))}, is {shorten(now.get(name, missing))}"
        for name in dict.fromkeys([*saved, *now])
        if saved.get(name, missing) != now.get(name, missing)
    ]


def shorten(value: Any) -> str:
    """A value as text; digests are shortened."""
    text = json.dumps(value)
    return f"{text[:60]}…" if len(text) > 60 else text
