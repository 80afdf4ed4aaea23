"""`vgpo train`: one run from a recipe to a report, top to bottom."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import ProgressCallback
from trl import get_peft_config

from vgpo.commands.arithmetic import BatchArithmetic, check_launch
from vgpo.commands.loading import load_model, load_processor, load_prompts
from vgpo.commands.recipe import REWARDS, Recipe, RecipeError, load_recipe
from vgpo.data import DataError
from vgpo.report import RunCallback, RunFolder, RunFolderError, write_report
from vgpo.study import Evaluation, evaluate
from vgpo.trl import DynamicSamplingError, NonFiniteError, VGPOTrainer

ERRORS = (RecipeError, DataError, RunFolderError, DynamicSamplingError, NonFiniteError)

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
    trained = train(load_recipe(config, overrides), command=command)
    Console().print(f"report: {trained.folder.report_path}", highlight=False, markup=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Hide what no user can act on: TRL still reads names that transformers renames."""
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)


def train(recipe: Recipe, *, command: Sequence[str], console: Console | None = None) -> TrainedRun:
    """Train as the recipe says and leave a run folder that explains itself.

    Whatever can be wrong with recipe and data is found before a model is loaded.

    Raises:
        RecipeError: Batch sizes and data or processes do not fit, or the model cannot be loaded.
        DataError: A row that cannot be trained on.
        RunFolderError: The run folder already holds a run, or cannot be written.
    """
    run, config, model_config = recipe.run, recipe.config, recipe.model
    console = console or Console(quiet=not config.should_log)
    data_folder = Path(run.run_dir) / "data"
    check_launch(run, config.world_size)
    with config.main_process_first(desc="data"):
        train_prompts = load_prompts(run.train_data, run.template, toy_folder=data_folder)
        held_out = (
            load_prompts(run.eval_data, run.template, toy_folder=data_folder, limit=run.eval_limit)
            if run.eval_data
            else None
        )
    console.print(BatchArithmetic.of(config, len(train_prompts), config.world_size).table())

    trust = config.trust_remote_code
    processor = load_processor(
        model_config, trust_remote_code=trust, min_pixels=run.min_pixels, max_pixels=run.max_pixels
    )
    folder = start_folder(recipe, command)
    trainer = VGPOTrainer(
        model=load_model(model_config, trust_remote_code=trust),
        args=config,
        reward_funcs=[REWARDS[name] for name in run.rewards],
        train_dataset=train_prompts,
        processing_class=processor,
        peft_config=get_peft_config(model_config),
        callbacks=[RunCallback(folder)],
        rollout_writer=folder.write_rollouts,
    )

    if not config.disable_tqdm:
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(RewardBar())

    evaluations: dict[str, Evaluation] = {}
    if held_out is not None and run.evaluate_before:
        evaluations["before"] = evaluate_policy(trainer, held_out)
        console.print(f"before: {evaluations['before']}", soft_wrap=True)
    started = time.monotonic()
    trainer.train()
    training_seconds = time.monotonic() - started
    trainer.save_model(str(folder.checkpoints_path / "final"))
    if held_out is not None:
        evaluations["after"] = evaluate_policy(trainer, held_out)
        console.print(f"after: {evaluations['after']}", soft_wrap=True)

    if config.should_save and evaluations:
        folder.write_evaluation({when: dataclasses.asdict(scores) for when, scores in evaluations.items()})
    if config.should_save:
        write_report([folder.path], folder.report_path)
    return TrainedRun(folder, evaluations, training_seconds)


class RewardBar(ProgressCallback):
    """The trainer's progress bar with a few figures behind it, in place of a dictionary for every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs:
            self.training_bar.set_postfix({name: f"{logs[key]:.3f}" for name, key in SHOWN.items() if key in logs})


def start_folder(recipe: Recipe, command: Sequence[str]) -> RunFolder:
    """The run folder, written by the main process alone."""
    path = Path(recipe.run.run_dir)
    if recipe.config.process_index != 0:
        return RunFolder(path)
    parts = (dataclasses.asdict(recipe.run), recipe.config.to_dict(), dataclasses.asdict(recipe.model))
    settings = {key: value for part in parts for key, value in part.items()}
    return RunFolder.create(path, settings, seed=recipe.config.seed, command=command)


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
