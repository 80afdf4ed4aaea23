"""`vgpo train`: one run from a recipe to a report, top to bottom."""

import dataclasses
import errno
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from datasets import Dataset
from rich.console import Console
from safetensors import SafetensorError
from transformers import ProgressCallback

from vgpo.commands.arithmetic import BatchArithmetic, check_launch
from vgpo.commands.doctor import BEFORE_LOADING, WITH_MODEL, refuse_hopeless
from vgpo.commands.loading import adapter_config, check_image_token, quiet_libraries
from vgpo.commands.recipe import Recipe, RecipeError, load_recipe
from vgpo.commands.reward import check_reward_columns
from vgpo.commands.setup import Setup
from vgpo.data import DataError
from vgpo.report import RunCallback, RunFolder, RunFolderError, write_report
from vgpo.report.storage import RESTART
from vgpo.rewards import RewardError, load_reward
from vgpo.study import Evaluation, evaluate
from vgpo.trl import DynamicSamplingError, NonFiniteError, VGPOTrainer
from vgpo.trl.freeze import parameter_table

ERRORS = (RecipeError, DataError, RewardError, RunFolderError, DynamicSamplingError, NonFiniteError)

DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

logger = logging.getLogger(__name__)

# Behind the progress bar; all metrics are in metrics.jsonl.
SHOWN = {"reward": "reward", "accuracy": "sampling/accuracy_drawn"}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, what it scored, and the seconds its training took."""

    folder: RunFolder
    evaluations: dict[str, Evaluation]
    training_seconds: float


def run(config: str, overrides: Sequence[str], *, command: Sequence[str]) -> None:
    """Train as the recipe `config` says, with `--field value` words that override it."""
    quiet_libraries()
    with end_on_sigterm():
        trained = train(load_recipe(config, overrides), command=command)
    Console().print(f"report: {trained.folder.report_path}", highlight=False, markup=False, soft_wrap=True)


def train(recipe: Recipe, *, command: Sequence[str], console: Console | None = None) -> TrainedRun:
    """Train as the recipe says and leave a run folder that explains itself.

    Whatever can be wrong with recipe and data is found before a model is loaded, and a start that fails leaves the
    folder free. A run that ends early is reported on as far as it came.

    Raises:
        RecipeError: Batch sizes and data or processes do not fit, or the model cannot be loaded.
        DataError: A row that cannot be trained on.
        RewardError: The data set lacks a column that a reward asks for, or a reward fails on a row.
        RunFolderError: The run folder already holds a run, or the disk refuses to take more.
    """
    run, config = recipe.run, recipe.config
    console = console or Console(quiet=not config.should_log)
    folder = RunFolder(Path(run.run_dir))
    folder.refuse_taken()
    check_launch(run, config.world_size)
    setup = Setup(recipe, folder.path / "data")
    refuse_hopeless(setup, BEFORE_LOADING, console)
    with config.main_process_first(desc="data"):
        prompts, held_out = setup.prompts, setup.held_out
    check_reward_columns(map(load_reward, run.rewards), prompts)
    console.print(BatchArithmetic.of(config, len(prompts), config.world_size).table())
    trainer = build_trainer(setup, folder, console)
    # Last of all that can fail at the start, so that a mended recipe can take the same folder.
    start_folder(recipe, command)
    try:
        with full_disk_named(folder, trainer):
            return run_phases(recipe, trainer, held_out, folder, console)
    except BaseException:
        end_early(folder, trainer, console)
        raise


def build_trainer(setup: Setup, folder: RunFolder, console: Console) -> VGPOTrainer:
    """Model and trainer of a recipe; the trainer will write into `folder`. Prints what is trained."""
    run, config, model = setup.recipe.run, setup.recipe.config, setup.model
    check_image_token(model, setup.processor)
    refuse_hopeless(setup, WITH_MODEL, console)
    trainer = VGPOTrainer(
        model=model,
        args=config,
        reward_funcs=[load_reward(name) for name in run.rewards],
        train_dataset=setup.prompts,
        processing_class=setup.processor,
        peft_config=adapter_config(setup.recipe.model, model, vision=run.lora_vision),
        callbacks=[RunCallback(folder)],
        rollout_writer=folder.write_rollouts,
    )
    if not config.disable_tqdm:
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(RewardBar())
    console.print(parameter_table(trainer.model))
    return trainer


def run_phases(
    recipe: Recipe, trainer: VGPOTrainer, held_out: Dataset | None, folder: RunFolder, console: Console
) -> TrainedRun:
    """Evaluate, train, evaluate, save, draw; what one phase found is on the disk before the next begins."""
    config = recipe.config
    evaluations: dict[str, Evaluation] = {}

    def evaluate_and_write(when: str) -> None:
        evaluations[when] = evaluate_policy(trainer, held_out)
        console.print(f"{when}: {evaluations[when]}", soft_wrap=True)
        if config.should_save:
            folder.write_evaluation({name: dataclasses.asdict(scores) for name, scores in evaluations.items()})

    if held_out is not None and recipe.run.evaluate_before:
        evaluate_and_write("before")
    started = time.monotonic()
    trainer.train()
    training_seconds = time.monotonic() - started
    if held_out is not None:
        evaluate_and_write("after")
    trainer.save_model(str(folder.checkpoints_path / "final"))
    if config.should_save:
        write_report([folder.path], folder.report_path)
    return TrainedRun(folder, evaluations, training_seconds)


def end_early(folder: RunFolder, trainer: VGPOTrainer, console: Console) -> None:
    """Draw the report of a run that an error or a signal ends; that error stays the one to be told."""
    if not trainer.args.should_save:
        return
    try:
        write_report([folder.path], folder.report_path)
    except Exception:
        logger.warning("The report of the stopped run could not be drawn.", exc_info=True)
    console.print(
        f"\nstopped at step {trainer.state.global_step}; metrics, rollouts and report are in {folder.path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def full_disk_named(folder: RunFolder, trainer: VGPOTrainer) -> Iterator[None]:
    """A checkpoint that the disk refuses, as an error that says what is left.

    Raises:
        RunFolderError: The disk refused to store weights or trainer state.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not is_refused_by_disk(error):
            raise
        # The trainer's state is the last file of a checkpoint.
        complete = sorted(path.parent.name for path in folder.checkpoints_path.glob("*/trainer_state.json"))
        raise RunFolderError(
            f"{folder.checkpoints_path} could not be written: {str(error).splitlines()[0]}. Metrics, rollouts and "
            f"evaluation are intact up to step {trainer.state.global_step}; complete checkpoints: "
            f"{', '.join(complete) or 'none'}. {RESTART}"
        ) from error


def is_refused_by_disk(error: Exception) -> bool:
    """Whether an error of writing weights comes from the disk; PyTorch's own writer says so in words only."""
    if isinstance(error, OSError):
        return error.errno in DISK_REFUSALS
    return isinstance(error, SafetensorError) or "inline_container" in str(error)


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Let a polite kill end a run as Ctrl-C does, with the exit status that shells expect of it."""

    def end(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class RewardBar(ProgressCallback):
    """The trainer's progress bar with a few figures behind it, in place of a dictionary for every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs:
            self.training_bar.set_postfix({name: f"{logs[key]:.3f}" for name, key in SHOWN.items() if key in logs})


def start_folder(recipe: Recipe, command: Sequence[str]) -> None:
    """Write what the run is into its folder, by the main process alone."""
    if recipe.config.process_index != 0:
        return
    parts = (dataclasses.asdict(recipe.run), recipe.config.to_dict(), dataclasses.asdict(recipe.model))
    settings = {key: value for part in parts for key, value in part.items()}
    RunFolder.create(recipe.run.run_dir, settings, seed=recipe.config.seed, command=command)


def evaluate_policy(trainer: VGPOTrainer, held_out: Dataset) -> Evaluation:
    """Greedy accuracy with the batch size and response length of the run."""
    config = trainer.args
    # Without the mixed-precision wrapper, so that before and after are computed alike.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return evaluate(
        model,
        trainer.processing_class,
        held_out,
        batch_size=config.per_device_eval_batch_size,
        max_new_tokens=config.max_completion_length,
        chat_template_kwargs=config.chat_template_kwargs,
        progress=not config.disable_tqdm,
    )
