"""Callbacks that keep a run folder up to date while a trainer runs."""

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vgpo.report.live import LiveReport
from vgpo.run import folder_state, resume_folder
from vgpo.run.defaults import changed_defaults
from vgpo.run.folder import RunFolder
from vgpo.training.resuming import run_on_main_process

KEPT_LINES = 100


class RunCallback(TrainerCallback):
    """Log to metrics.jsonl, and draw report.html during training (`LiveReport`) and when it ends.

    Every process may hold one; only the world's main process writes. A line is
    `{"step", "epoch", "time", ...logs}` with `time` in seconds since 1970 (UTC). `state.log_history`, which each
    checkpoint holds, keeps the last lines only, so that neither grows with the run.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder
        self.report = LiveReport(run_folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        del state.log_history[:-KEPT_LINES]
        if state.is_world_process_zero and logs:
            place = {"step": state.global_step, "epoch": state.epoch, "time": time.time()}
            self.run_folder.log_metrics({**place, **logs})
            self.report.keep_fresh()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        # After a skipped step nothing was saved.
        if state.is_world_process_zero and (self.run_folder.checkpoints_path / f"checkpoint-{step}").is_dir():
            self.run_folder.write_saved(step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.report.draw(live=False)


class OwnRunFolder(RunCallback):
    """As `RunCallback`, for a trainer without a recipe: opens the folder when training begins.

    A training from step 0 needs a folder without a run; one from a checkpoint continues the run that is there.
    """

    def __init__(self, trainer: Any, run_folder: RunFolder) -> None:
        super().__init__(run_folder)
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        run_on_main_process(lambda: self._open(args, state.global_step))
        super().on_train_begin(args, state, control, **kwargs)

    def _open(self, args: TrainingArguments, step: int) -> None:
        if step and self.run_folder.marks:
            resume_folder(self.run_folder, step, seed=args.seed, command=sys.argv)
            return
        trainer = self.trainer
        settings = {
            **args.to_dict(),
            "run_dir": str(self.run_folder.path),
            "model_name_or_path": trainer.model.name_or_path,
            "accuracy_reward": trainer.accuracy_reward,
        }
        defaults = changed_defaults([], derived=[args])
        RunFolder.create(self.run_folder.path, settings, seed=args.seed, command=sys.argv, defaults=defaults)


def keep_run_folder(trainer: Any, run_dir: str | Path) -> None:
    """Let a trainer leave a run folder: settings, environment, metrics, rollouts and report.

    Args:
        trainer: A `VGPOTrainer`. A rollout writer that it has stays.
        run_dir: The folder.
    """
    folder = RunFolder(Path(run_dir).expanduser().absolute())
    trainer.add_callback(OwnRunFolder(trainer, folder))
    trainer.folder_state = lambda: folder_state(folder).model_dump()
    if trainer.rollout_writer is None:
        trainer.rollout_writer = folder.write_rollouts
