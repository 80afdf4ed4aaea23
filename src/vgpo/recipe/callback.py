"""The callback that keeps the run folder up to date while a trainer runs."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vgpo.report.live import LiveReport
from vgpo.run.folder import RunFolder

KEPT_LINES = 100


class RunCallback(TrainerCallback):
    """Log to metrics.jsonl, and write report.html during training (`LiveReport`) and at its end.

    Every process may have one; only the main process writes. A line is
    `{"step", "epoch", "time", ...logs}` with `time` in seconds since 1970 (UTC). `state.log_history`, which is part of
    each checkpoint, keeps only the last lines, so that neither grows with the run.
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
        # Nothing was saved after a skipped step.
        if state.is_world_process_zero and (self.run_folder.checkpoints_path / f"checkpoint-{step}").is_dir():
            self.run_folder.write_saved(step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.report.draw(live=False)
