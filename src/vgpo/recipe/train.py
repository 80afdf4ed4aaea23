"""Train one run, from a recipe to a report."""

import dataclasses
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from vgpo.checkpoints import CheckpointError, put_in_place, seal
from vgpo.data import DataError
from vgpo.evaluation import Evaluation, evaluate
from vgpo.evaluation.errors import EvaluationError
from vgpo.metric_names import SAMPLING_ACCURACY_DRAWN
from vgpo.policy.parity import ParityError
from vgpo.policy.parts import parameter_table
from vgpo.recipe.checks import BEFORE_LOADING, WITH_DATA, WITH_MODEL, raise_failed_checks
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.identity import DATA_SETS, Resume, model_identity, resume_from, run_identity, with_changes
from vgpo.recipe.loading import adapter_config, check_image_token, quiet_libraries
from vgpo.recipe.recipe import Recipe, load_recipe
from vgpo.recipe.run_plan import RunPlan, check_launch
from vgpo.recipe.serving import server_of
from vgpo.recipe.setup import Setup
from vgpo.recipe.signals import StopOnSignal
from vgpo.recipe.suite import EvaluateSuite
from vgpo.recipe.suite_settings import greedy_protocol
from vgpo.recipe.trackers import TrackedRollouts, forgive_trackers
from vgpo.report import write_report
from vgpo.report.training import RunCallback
from vgpo.rewards import RewardError, load_reward
from vgpo.rewards.checked import check_reward_columns
from vgpo.run import RunFolder, RunFolderError, folder_state, locked, resume_folder
from vgpo.run.defaults import changed_defaults
from vgpo.run.resuming import DESCRIPTION, evaluation_before
from vgpo.run.storage import RESUME
from vgpo.terminal import draws_bars, from_here, say
from vgpo.training.resuming import run_on_main_process
from vgpo.trl import AlarmError, DynamicSamplingError, NonFiniteError, VGPOTrainer
from vgpo.vllm.prompts import EngineError

ERRORS = (
    RecipeError, DataError, EvaluationError, RewardError, RunFolderError, CheckpointError, AlarmError,
    DynamicSamplingError, EngineError, NonFiniteError, ParityError,
)  # fmt: skip

WHILE_REPORTING = (Exception, KeyboardInterrupt, SystemExit)
"""Errors that may occur while another error is reported, and must not hide it."""

logger = logging.getLogger(__name__)

# Shown after the progress bar; all metrics are in metrics.jsonl.
SHOWN = {"reward": "reward", "accuracy": SAMPLING_ACCURACY_DRAWN}
STDERR = Console(stderr=True)  # where the bar is drawn


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, its scores, and the duration of its training in seconds."""

    folder: RunFolder
    evaluations: dict[str, Evaluation]
    training_seconds: float


def train_recipe(source: str | Path, overrides: Sequence[str], *, command: Sequence[str]) -> tuple[Recipe, TrainedRun]:
    """Load a recipe and train it; a signal ends it after the step in progress, with a checkpoint.

    Args:
        source, overrides: see `load_recipe`.
        command: the words of the command line, for the record.

    Raises:
        One of `ERRORS`, as `load_recipe` and `train` do; SystemExit if a signal ended the training.
    """
    quiet_libraries()
    recipe = load_recipe(source, overrides)
    if recipe.run.host != "trl":
        raise RecipeError(
            f"{source}: host is {recipe.run.host!r}, but this command is TRL's: start the recipe with `vgpo train` or "
            "`python -m vgpo.verl`; a study does so with `launch: [python]`"
        )
    stopper = StopOnSignal()
    with stopper.installed():
        return recipe, train(recipe, command=command, stopper=stopper)


def train(
    recipe: Recipe, *, command: Sequence[str], console: Console | None = None, stopper: StopOnSignal | None = None
) -> TrainedRun:
    """Train a recipe and write a self-explanatory run folder.

    Errors in recipe and data are found before a model is loaded. A failed start leaves the folder free, and a resume
    that fails before its first step leaves it unchanged. An interrupted run gets a report of its steps so far, and can
    be resumed with `resume: true`.

    Args:
        recipe: from `load_recipe`.
        command: the words of the command line, for the record.
        console: output; by default the terminal, on the main process.
        stopper: ends the training on a signal.

    Raises:
        RecipeError: Batch sizes do not fit data or processes, the model cannot be loaded, or the run to resume is
        another one.
        DataError: A row that cannot be trained on.
        RewardError: The dataset lacks a column that a reward needs, or a reward fails on a row.
        RunFolderError: The run folder already contains a run, or a finished one, or writing failed.
        CheckpointError: A checkpoint cannot be written, does not match the model, or none is usable.
        ParityError: The trainer does not compute what the model computes.
        SystemExit: A signal ended the training.
    """
    console = console or Console(quiet=not recipe.config.should_log)
    # Absolute, so that no later change of the working directory moves files.
    folder = RunFolder(Path(recipe.run.run_dir).expanduser().absolute(), recipe.run.max_rollout_bytes)
    with locked_by_main_process(folder):
        return train_in(folder, recipe, command=command, console=console, stopper=stopper)


@contextmanager
def locked_by_main_process(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of the run folder; if another trainer holds it, all processes raise."""
    with ExitStack() as stack:
        run_on_main_process(lambda: stack.enter_context(locked(folder.path)))
        yield


def train_in(
    folder: RunFolder, recipe: Recipe, *, command: Sequence[str], console: Console, stopper: StopOnSignal | None
) -> TrainedRun:
    """`train` in a folder that no other process writes to."""
    run, config = recipe.run, recipe.config
    goes_on = run.resume and bool(folder.marks)
    if not goes_on:
        folder.require_free()
    check_launch(run, config.world_size)
    setup = Setup(recipe, folder.path / "data", checks_images=config.process_index == 0)
    raise_failed_checks(setup, BEFORE_LOADING, console)
    resume = None
    if goes_on:
        resume = run_on_main_process(lambda: resume_from(folder, config, run.allow_changes, console))
        setup.trusted = {field: resume.identity.get(name) for name, field in DATA_SETS.items()}
    with config.main_process_first(desc="data"):
        prompts, held_out, _ = setup.prompts, setup.held_out, setup.tasks
    check_reward_columns(map(load_reward, run.rewards), prompts)
    if resume is None:
        run_on_main_process(lambda: raise_failed_checks(setup, WITH_DATA, console))
    say(console, describe_start(setup, folder))
    console.print(RunPlan.of(config, len(prompts), config.world_size).table())
    identity = run_on_main_process(lambda: run_identity(setup))
    if resume is not None:
        resume = with_changes(resume, identity, allow_changes=run.allow_changes, console=console)
    model = setup.model  # on all processes at once, which may share it
    identity |= run_on_main_process(lambda: model_identity(model))
    if resume is not None:
        resume = with_changes(resume, identity, allow_changes=run.allow_changes, console=console)
    with server_of(setup):
        trainer = build_trainer(setup, folder, console, identity=identity, stopper=stopper)
        if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:  # otherwise after the model is sharded
            trainer.check_parity()
        opening = OpenFolder(folder, recipe, command, identity, resume)
        if resume is None:
            # After everything that can fail at the start, so that a corrected recipe can use the same folder.
            opening.open()
        else:
            trainer.add_callback(opening)
        try:
            return run_phases(recipe, trainer, held_out, folder, console, resume=resume, stopper=stopper)
        except BaseException as error:
            if opening.is_open:
                mark_interrupted(folder, trainer, console, error, command)
            raise


def describe_start(setup: Setup, folder: RunFolder) -> str:
    """The run folder, the device and the data of a run, one per line."""
    run, config = setup.recipe.run, setup.recipe.config
    device = torch.cuda.get_device_name(config.device) if config.device.type == "cuda" else str(config.device)
    data = f"{len(setup.prompts):,} prompts for training ({run.train_data})"
    if setup.held_out is not None:
        data += f", {len(setup.held_out):,} held-out questions ({run.eval_data})"
    return f"run folder: {from_here(folder.path)}\ndevice: {device}\ndata: {data}"


def build_trainer(
    setup: Setup,
    folder: RunFolder,
    console: Console,
    *,
    identity: Mapping[str, Any] | None = None,
    stopper: StopOnSignal | None = None,
) -> VGPOTrainer:
    """Build model and trainer of a recipe, which will write into `folder`. Prints trained parameters and memory."""
    run, config, model = setup.recipe.run, setup.recipe.config, setup.model
    check_image_token(model, setup.processor)
    raise_failed_checks(setup, WITH_MODEL, console)
    trainer = VGPOTrainer(
        model=model,
        args=config,
        reward_funcs=[load_reward(name) for name in run.rewards],
        train_dataset=setup.prompts,
        processing_class=setup.processor,
        peft_config=adapter_config(setup.recipe.model, model, vision=run.lora_vision),
        callbacks=[RunCallback(folder), *([] if stopper is None else [stopper])],
        run_identity=identity,
        folder_state=lambda: folder_state(folder).model_dump(),
    )
    forgive_trackers(trainer.callback_handler.callbacks)
    trainer.rollout_writer = TrackedRollouts(folder.write_rollouts, trainer.callback_handler.callbacks)
    trainer.add_callback(KeepParity(trainer, folder, console))
    if setup.tasks:
        protocol = greedy_protocol(run.eval_suite_protocol)
        trainer.add_callback(
            EvaluateSuite(trainer, setup.tasks, protocol, every=run.eval_suite_steps, folder=folder, console=console)
        )
    if not console.is_jupyter:  # where the parent's own bar is a widget
        trainer.pop_callback(ProgressCallback)
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(StepLines(console) if config.disable_tqdm or not draws_bars(STDERR) else RewardBar())
    console.print(parameter_table(trainer.model))
    console.print(setup.memory.table())
    return trainer


def run_phases(
    recipe: Recipe,
    trainer: VGPOTrainer,
    held_out: Dataset | None,
    folder: RunFolder,
    console: Console,
    *,
    resume: Resume | None = None,
    stopper: StopOnSignal | None = None,
) -> TrainedRun:
    """Evaluate, train, save, evaluate, report; the result of each phase is written to disk before the next begins."""
    config = recipe.config
    known = evaluation_before(folder, resume.state).get("before") if resume else None
    evaluations = {"before": Evaluation(**known)} if known else {}

    def evaluate_and_write(when: str) -> None:
        evaluations[when] = evaluate_policy(trainer, held_out)
        say(console, f"{when}: {evaluations[when]}")
        if config.should_save:
            folder.write_evaluation({name: dataclasses.asdict(scores) for name, scores in evaluations.items()})

    found = resume.found if resume and resume.found.path else None
    if held_out is not None and recipe.run.evaluate_before and found is None and "before" not in evaluations:
        evaluate_and_write("before")
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=found)
    training_seconds = time.monotonic() - started
    if stopper is not None and not stopper.training_is_over:
        stopper.leave()
    save_final(trainer, folder)
    if stopper is not None:
        stopper.leave()
    if held_out is not None:
        evaluate_and_write("after")
    if config.should_save:
        draw_report(folder)
        folder.write_finished(trainer.state.global_step, trainer.state.epoch)
    return TrainedRun(folder, evaluations, training_seconds)


def draw_report(folder: RunFolder) -> None:
    """Write the report of a completed run; a failure is only a warning, because the metrics are safe."""
    with attempted(
        f"{folder.report_path} could not be written; run `vgpo report {folder.path}` to create it", Exception
    ):
        write_report([folder.path], folder.report_path)


@contextmanager
def attempted(failure: str, *errors: type[BaseException]) -> Iterator[None]:
    """Suppress `errors` in the block, and log `failure` with the traceback."""
    try:
        yield
    except errors:
        logger.warning("%s.", failure, exc_info=True)


def save_final(trainer: VGPOTrainer, folder: RunFolder) -> None:
    """Write the trained model under a temporary name and rename it once it is complete.

    Raises:
        NonFiniteError: A trained weight is not finite.
        RunFolderError: Writing failed.
    """
    final = folder.final_path
    partial = final.with_name(".saving-final")
    try:
        trainer.save_model(str(partial))
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            seal(partial, trainer.state.global_step)
            replaced = put_in_place(partial, final)
            shutil.rmtree(replaced, ignore_errors=True)
    except (NonFiniteError, CheckpointError):
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is PyTorch's own writer
        raise RunFolderError(
            f"{final} could not be written: {error}. Metrics, rollouts and checkpoints are intact: free space on this "
            "disk, and run the same command with --resume true."
        ) from error


def mark_interrupted(
    folder: RunFolder, trainer: VGPOTrainer, console: Console, error: BaseException, command: Sequence[str]
) -> None:
    """Mark a run that an error or a signal ends, and write its report, without hiding that error."""
    if not trainer.args.should_save:
        return
    step, newest = trainer.state.global_step, None
    # A full disk or another signal must not replace the reported error.
    with attempted("The stopped run could not be marked", *WHILE_REPORTING):
        folder.write_interrupted(step, error)
    with attempted("The report of the stopped run could not be written", *WHILE_REPORTING):
        draw_report(folder)
    with attempted("The checkpoints of the stopped run could not be read", *WHILE_REPORTING):
        newest = trainer.checkpoints.newest_valid(contents=False).path  # the sender of a signal may not wait long
    with attempted("The summary of the stopped run could not be printed", *WHILE_REPORTING):
        say(console, f"\nstopped at step {step}; metrics, rollouts and report are in {folder.path}")
        # After non-finite weights or losses, the error names the checkpoint to go back to.
        if newest is not None and not isinstance(error, NonFiniteError):
            say(console, f"to resume from {newest}, {how_to_resume(command)}")


def how_to_resume(command: Sequence[str]) -> str:
    """What to run. A process that trains several runs, such as the quickstart, gives each a command of its own."""
    return RESUME if list(command) == sys.argv else f"run {shlex.join([*command, '--resume', 'true'])}"


class RewardBar(ProgressCallback):
    """The trainer's progress bar followed by a few metrics, instead of a dictionary per step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = shown_metrics(logs)
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


class StepLines(TrainerCallback):
    """A line with a few metrics for every logged step, where no bar can be drawn."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if shown := shown_metrics(logs):
            metrics = ", ".join(f"{name} {value}" for name, value in shown.items())
            say(self.console, f"step {state.global_step} of {state.max_steps}: {metrics}")


def shown_metrics(logs: Mapping[str, Any] | None) -> dict[str, str]:
    """The metrics of a logged step that a terminal shows."""
    # A reward that applies to no row of a step has no mean, and metrics of benchmarks come without one.
    return {name: f"{logs[key]:.3f}" for name, key in SHOWN.items() if logs is not None and logs.get(key) is not None}


class KeepParity(TrainerCallback):
    """Prints the results of the parity check, and stores them in the run folder."""

    def __init__(self, trainer: VGPOTrainer, folder: RunFolder, console: Console) -> None:
        self.trainer = trainer
        self.folder = folder
        self.console = console

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        parity = self.trainer.parity
        if parity is None or not self.trainer.args.should_save:
            return
        self.console.print(parity.table())
        with attempted("The results of the parity check could not be written", OSError, RunFolderError):
            self.folder.write_parity(parity.as_dict())


class OpenFolder(TrainerCallback):
    """Writes the description of the run into its folder; a resumed run resets its folder after loading its
    checkpoint."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        command: Sequence[str],
        identity: Mapping[str, Any],
        resume: Resume | None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.command = command
        self.identity = identity
        self.resume = resume
        self.is_open = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.open()

    def open(self) -> None:
        """Create the folder, or continue that of the resumed run; only the main process writes."""
        config, resume = self.recipe.config, self.resume
        if config.process_index != 0:
            return
        start = {"seed": config.seed, "command": self.command}
        defaults = changed_defaults([self.recipe.run, self.recipe.model], derived=[config])
        if resume is None:
            RunFolder.create(self.folder.path, self._settings(), identity=self.identity, defaults=defaults, **start)
        else:
            damaged = [name for name in DESCRIPTION if name in resume.damage.repaired]
            if damaged:
                self.folder.write_description(self._settings(), only=damaged, defaults=defaults, **start)
            self.folder.write_identity(self.identity)
            resume_folder(self.folder, resume.step, resume.state, changes=resume.record, **start)
        self.is_open = True

    def _settings(self) -> dict[str, Any]:
        recipe = self.recipe
        parts = (dataclasses.asdict(recipe.run), recipe.config.to_dict(), dataclasses.asdict(recipe.model))
        settings = {key: value for part in parts for key, value in part.items()}
        return {**settings, "accuracy_reward": recipe.accuracy_reward}


def evaluate_policy(trainer: VGPOTrainer, held_out: Dataset) -> Evaluation:
    """Greedy accuracy with the batch size and response length of the run."""
    config = trainer.args
    # Without the mixed-precision wrapper, so that before and after are computed in the same way.
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
