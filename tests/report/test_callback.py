"""The callback against a real trainer, and on a process that is not the main one."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from vgpo.report.training import RunCallback


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": (self.slope * x - labels).square().mean()}


@pytest.mark.train
def test_a_training_run_is_logged_and_drawn(make_run, tmp_path: Path):
    folder = make_run()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    rows = [{"x": torch.tensor(1.0), "labels": torch.tensor(2.0)}] * 6
    Trainer(Line(), arguments, train_dataset=rows, callbacks=[RunCallback(folder)]).train()

    lines = folder.read_metrics()
    assert [line["step"] for line in lines[:3]] == [1, 2, 3]
    assert list(lines[0])[:3] == ["step", "epoch", "time"]
    assert lines[0]["loss"] == 4.0
    assert lines[0]["time"] > 1.7e9
    assert "<!doctype html>" in folder.report_path.read_text()


def test_other_processes_write_nothing(make_run, tmp_path: Path):
    folder = make_run()
    callback, state = RunCallback(folder), TrainerState(is_world_process_zero=False)
    arguments = TrainingArguments(output_dir=str(tmp_path / "trainer"), use_cpu=True)
    callback.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    callback.on_train_end(arguments, state, TrainerControl())
    assert not folder.metrics_path.exists()
    assert not folder.report_path.exists()
