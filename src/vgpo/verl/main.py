"""A run on verl, from a recipe to a report: `python -m vgpo.verl RECIPE --field value`."""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from ray.exceptions import RayTaskError
from rich.console import Console
from transformers import AutoConfig, GenerationConfig
from transformers.utils import cached_file
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from vgpo.checkpoints import CheckpointError, CheckpointStore
from vgpo.data import DataError, template_text
from vgpo.data.fingerprint import fingerprint
from vgpo.focus import banned_token_ids
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.identity import (
    DATA_SETS,
    IGNORED_FIELDS,
    check_not_finished,
    differences,
    digest,
    processor_identity,
    source_digest,
)
from vgpo.recipe.loading import (
    NAMING_CODE,
    code_references,
    is_toy,
    quiet_libraries,
    refuse_unsuitable,
    source_of,
    write_toy,
)
from vgpo.rewards import RewardError, load_reward, reward_name
from vgpo.rewards.checked import check_reward_columns
from vgpo.run import RunFolder, RunFolderError, locked
from vgpo.run.storage import plain
from vgpo.shaping import IMAGE_SIGNALS
from vgpo.terminal import say
from vgpo.training.alarms import AlarmError
from vgpo.training.signals import required_signals
from vgpo.verl.closing import draw_report, finish_run
from vgpo.verl.config import VerlRecipe, compose, load_recipe
from vgpo.verl.dataset import HELD_OUT, TRAIN, load_rows, processor_of_recipe
from vgpo.vllm.prompts import EngineError

ERRORS = (RecipeError, DataError, RewardError, RunFolderError, CheckpointError, AlarmError, EngineError)
START = ("config.yaml", "environment.json", "code.diff", "run_identity.json")
"""What a run writes before it trains."""

Launch = Callable[[DictConfig, Any], None]

logger = logging.getLogger(__name__)


class VGPOTaskRunner(TaskRunnerV1.__ray_actor_class__):
    """verl's driver; it registers the trainers of vgpo before verl looks for one."""

    def run(self, config: DictConfig) -> None:
        """As the parent."""
        import vgpo.verl.trainer  # noqa: F401  # registers them

        super().run(config)


def main(words: Sequence[str] | None = None) -> None:
    """The command line; an error of the user is one line, with status 1."""
    parser = argparse.ArgumentParser(prog="python -m vgpo.verl", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", help="A recipe: a YAML file, or the name of one that comes with vgpo.")
    parser.add_argument("--check", action="store_true", help="Check recipe, data and rewards, and do not train.")
    parser.add_argument("--print-config", action="store_true", help="Print verl's configuration, and do not train.")
    arguments, overrides = parser.parse_known_args(words)
    try:
        recipe = load_recipe(arguments.recipe, overrides)
        if arguments.print_config:
            sys.stdout.write(OmegaConf.to_yaml(wired(compose(recipe), recipe, sys.argv), resolve=True))
        elif arguments.check:
            check(recipe)
        else:
            train(recipe, command=sys.argv)
    except ERRORS as error:
        sys.exit(f"error: {error}")


def train(recipe: VerlRecipe, *, command: Sequence[str], launch: Launch = run_ppo) -> RunFolder:
    """Train as a recipe says, on the Ray cluster that is there, or on this machine.

    Whatever can be wrong with recipe and data is found before Ray starts.

    Args:
        recipe: of `vgpo.verl.config.load_recipe`.
        command: the words of the command line, for the record.
        launch: runs verl with a configuration and the Ray actor class of its driver.

    Raises:
        One of `ERRORS`, or whatever ends verl's driver.
    """
    quiet_libraries()
    console = Console()
    folder = RunFolder(Path(recipe.run.run_dir), recipe.run.max_rollout_bytes)
    with locked(folder.path):
        resumes = recipe.run.resume and bool(folder.marks)
        if not resumes:
            folder.require_free()
        else:
            check_not_finished(folder, recipe.arguments, console)
            check_state(folder)
        for_workers = with_written_sets(recipe)
        identity = identity_of(recipe, check_data(for_workers))
        config = wired(compose(for_workers), recipe, command, resumes=resumes)
        if resumes:
            check_same_run(folder, identity, recipe)
        else:
            settings = {**recipe.fields, "accuracy_reward": recipe.accuracy_reward}
            RunFolder.create(folder.path, settings, seed=recipe.arguments.seed, command=command, identity=identity)
        with marked_when_interrupted(folder):
            start(config, launch)
        finish_run(folder)
    return folder


def check(recipe: VerlRecipe) -> None:
    """Check what `train` checks before Ray starts, and print the batches of the run.

    Raises:
        One of `ERRORS`: something is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="vgpo-") as scratch:
        run = dataclasses.replace(recipe.run, run_dir=scratch)
        there = with_written_sets(dataclasses.replace(recipe, run=run))
        check_data(there)
        compose(there)
    plan = recipe.plan
    say(
        Console(),
        f"{recipe.where}: recipe, data and rewards are valid for verl.\nA step of verl is a generation of "
        f"{plan.prompts} prompts x {plan.group_size} rollouts on {plan.num_processes} GPU(s), with {plan.updates:g} "
        f"update(s) of {plan.rollouts_per_update} rollouts.",
    )


def check_data(recipe: VerlRecipe) -> dict[str, Any]:
    """Read model config, data and rewards, so that what is wrong with them is found now.

    Returns:
        dict: the rows of each set, by the field that names it.

    Raises:
        RecipeError, DataError, RewardError: something is.
    """
    refuse_unsuitable(recipe.checkpoint, trust_remote_code=recipe.arguments.trust_remote_code)
    check_code(recipe)
    rows = load_rows(recipe, TRAIN)
    if len(rows) < recipe.plan.prompts:
        raise RecipeError(
            f"a generation takes {recipe.plan.prompts} prompts and the training set has {len(rows)}; lower "
            "steps_per_generation or per_device_train_batch_size, or add data"
        )
    check_reward_columns([load_reward(name) for name in recipe.run.rewards], rows)
    needed = required_signals(recipe.method.build_shaping(), measure_focus=recipe.method.measure_focus)
    if not IMAGE_SIGNALS.isdisjoint(needed) and not any(row["images"] for row in rows):
        raise RecipeError(
            f"{recipe.run.train_data}: no row of the training set has an image. For a text-only run set shaping: none "
            "and measure_focus: false"
        )
    return {TRAIN: rows, HELD_OUT: load_rows(recipe, HELD_OUT)}


def check_code(recipe: VerlRecipe) -> None:
    """Whether a checkpoint brings no Python code, unless it may run: verl's reward workers would run a tokenizer's.

    Raises:
        RecipeError: it does; names the file.
    """
    if recipe.arguments.trust_remote_code:
        return
    name = source_of(recipe.checkpoint).name
    for file in NAMING_CODE:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        code = sorted(code_references(json.loads(Path(path).read_text(encoding="utf-8")))) if path else []
        if code:
            raise RecipeError(
                f"{recipe.where}: {file} of {name!r} names Python code in auto_map ({code[0]}), which verl's reward "
                "workers would run whatever trust_remote_code says. Read the code and set trust_remote_code: true, or "
                "remove auto_map from a copy of the checkpoint"
            )


def wired(config: DictConfig, recipe: VerlRecipe, command: Sequence[str], *, resumes: bool = False) -> DictConfig:
    """The configuration with what the workers of a run need to know beside the recipe."""
    trust = recipe.arguments.trust_remote_code
    model = AutoConfig.from_pretrained(config.actor_rollout_ref.model.path, trust_remote_code=trust)
    with open_dict(config):
        config.vgpo.resumes = resumes
        config.vgpo.end_token_ids = end_token_ids(recipe)
        config.vgpo.banned_token_ids = banned_token_ids(model)
        config.vgpo.command = [str(word) for word in command]
    return config


def end_token_ids(recipe: VerlRecipe) -> list[int]:
    """Tokens that end a response: those of the generation config, and the tokenizer's end and padding."""
    tokenizer = processor_of_recipe(recipe).tokenizer
    declared: Any = []
    with suppress(OSError):  # a checkpoint need not have one
        declared = GenerationConfig.from_pretrained(source_of(recipe.checkpoint).name).eos_token_id
    listed = [
        *(declared if isinstance(declared, list) else [declared]),
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ]
    return sorted({token for token in listed if token is not None})


def with_written_sets(recipe: VerlRecipe) -> VerlRecipe:
    """A recipe that names the files of the toy task's sets, written here once for all processes."""
    folder = Path(recipe.run.run_dir) / "data"
    sources = {field: vars(recipe.run)[field] for field in (TRAIN, HELD_OUT)}
    run = dataclasses.replace(recipe.run)
    for field, source in sources.items():
        if source and is_toy(source):
            setattr(run, field, str(write_toy(source, folder)))
    return dataclasses.replace(recipe, run=run)


def identity_of(recipe: VerlRecipe, sets: dict[str, Any]) -> dict[str, Any]:
    """What must be the same when a run is resumed: data, template and rewards by their content, and the settings.

    Settings that only watch or keep a run are left out.
    """
    settings = plain(recipe.fields, other=str)
    return {
        **{name: fingerprint(sets[field]) if len(sets[field]) else None for name, field in DATA_SETS.items()},
        "template": digest(template_text(recipe.run.template)),
        "rewards": [[reward_name(load_reward(name)), source_digest(name)] for name in recipe.run.rewards],
        "model": str(recipe.arguments.model_name_or_path),
        **processor_identity(processor_of_recipe(recipe)),
        **{name: value for name, value in sorted(settings.items()) if not name.startswith(IGNORED_FIELDS)},
    }


def check_state(folder: RunFolder) -> None:
    """Check that verl finds the state of a run that has checkpoints: otherwise it would start again from step 0.

    Raises:
        RunFolderError: it does not.
    """
    state = folder.checkpoints_path / "verl"
    steps = CheckpointStore(folder.checkpoints_path, keep=None).steps()
    if steps and find_latest_ckpt_path(str(state)) is None:
        raise RunFolderError(
            f"{state} holds no state that verl finished, although there are checkpoints (checkpoint-{steps[0]}): "
            "starting from step 0 would overwrite the run. Restore the state, or name the checkpoint as "
            "model_name_or_path of a new run."
        )


def check_same_run(folder: RunFolder, identity: dict[str, Any], recipe: VerlRecipe) -> None:
    """Check that a recipe belongs to the run in the folder.

    Raises:
        RecipeError: it does not, and `allow_changes` is not set.
    """
    changes = differences(folder.read_identity(), identity)
    if changes and not recipe.run.allow_changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise RecipeError(
            f"{folder.path} belongs to another run:\n{listed}\nUndo the changes, start a new run_dir, or set "
            "allow_changes: true to resume with them."
        )
    for change in changes:
        logger.warning("changed: %s", change)
    folder.write_identity(identity)


def start(config: DictConfig, launch: Launch) -> None:
    """Run verl's driver to its end.

    Raises:
        Whatever ended it; errors of vgpo as they were raised there.
    """
    try:
        launch(config, ray.remote(VGPOTaskRunner))
    except RayTaskError as error:
        if isinstance(error.cause, ERRORS):
            raise error.cause from None
        raise


@contextmanager
def marked_when_interrupted(folder: RunFolder) -> Iterator[None]:
    """Mark a run that an error or a signal ends in its folder; one that has not trained leaves the folder free."""
    try:
        yield
    except BaseException as error:
        with suppress(RunFolderError, OSError):
            if (
                folder.metrics_path.exists()
                or folder.evaluation_path.exists()
                or any(folder.checkpoints_path.glob("*"))
            ):
                step = max((int(line["step"]) for line in folder.read_metrics()), default=0)
                folder.write_interrupted(step, error)
                draw_report(folder)
            else:
                for name in START:
                    (folder.path / name).unlink(missing_ok=True)
        raise
