"""A long run takes no more memory than a short one: neither what Python allocates nor what the process holds."""

import gc
import tracemalloc

import numpy as np
import psutil
import pytest
from transformers import PrinterCallback, TrainerCallback

from tests.trl.tiny import rows_with_pictures
from vgpo.report import live, training
from vgpo.report.training import RunCallback
from vgpo.run import RunFolder
from vgpo.trl import VGPOTrainer

STEPS = 500
EVERY = 10
TRACED_FROM = 220  # tracing is slow; what is older than this must be gone at half time
KEPT_LINES = 20
BYTES_OF_A_LINE = 2_000  # that is logged


class Scripted(VGPOTrainer):
    """Generates without a model: two answers to each prompt, other ones at each step."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return [[20 + (7 * self.state.global_step + row) % 40] * 3 for row in range(len(prompt_ids))], None


class MemoryMeter(TrainerCallback):
    """Bytes in the second half of a run: those that Python has allocated, and those of the process."""

    def __init__(self):
        self.traced, self.held = [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == TRACED_FROM:
            tracemalloc.start()
        if state.global_step < STEPS // 2 or state.global_step % EVERY:
            return
        gc.collect()
        self.traced.append(tracemalloc.get_traced_memory()[0])
        self.held.append(psutil.Process().memory_info().rss)


def growth_per_step(figures):
    """Slope of the straight line through figures that lie `EVERY` steps apart (least squares)."""
    return np.polyfit(np.arange(len(figures)) * EVERY, figures, 1)[0]


@pytest.mark.slow
def test_memory_does_not_grow(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEPT_LINES", KEPT_LINES)
    monkeypatch.setattr(live, "MIN_PAUSE", 1.0)  # the page is drawn many times, and first before memory is looked at
    folder, meter = RunFolder.create(tmp_path / "folder", {}, seed=0, command=[]), MemoryMeter()
    trainer = make_trainer(
        Scripted,
        dataset=rows_with_pictures(8, cells=1),
        trainer_kwargs={"callbacks": [meter, RunCallback(folder)], "rollout_writer": folder.write_rollouts},
        num_generations=2,
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS // 5,
        save_total_limit=1,
        log_rollouts_steps=10,
    )
    trainer.pop_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        tracemalloc.stop()
    assert growth_per_step(meter.traced) < BYTES_OF_A_LINE / 4
    assert growth_per_step(meter.held) < 20 * BYTES_OF_A_LINE
    assert len(folder.read_metrics()) == STEPS + 1
