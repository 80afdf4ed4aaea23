"""Rollouts and their images for the trackers of `report_to`, beside those that the run folder keeps."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import SwanLabCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from vgpo.training.records import Images, RolloutRecord, RolloutWriter, code_block, shown_fields, shown_text

Records = Sequence[RolloutRecord]


class TrackedRollouts:
    """A rollout writer that hands records to another one, and to the trackers that listen to the same trainer.

    Args:
        write: takes the records first, as `RunFolder.write_rollouts`.
        callbacks: of the trainer (`trainer.callback_handler.callbacks`); read at each call.
    """

    def __init__(self, write: RolloutWriter, callbacks: Sequence[TrainerCallback]) -> None:
        self.write = write
        self.callbacks = callbacks

    def __call__(self, records: Records, images: Images) -> None:
        self.write(records, images)
        for callback in self.callbacks:
            for kind, send in TRACKERS.items():
                if isinstance(callback, kind):
                    send(callback, records, images)


def send_to_tensorboard(callback: TensorBoardCallback, records: Records, images: Images) -> None:
    """A text for each rollout, and each image once, under names that later steps take again."""
    for number, record in enumerate(records):
        callback.tb_writer.add_text(f"rollouts/{number}", code_block(shown_text(record, images)), record.step)
    for number, image in enumerate(images.values()):
        pixels = np.asarray(image.convert("RGB"))
        callback.tb_writer.add_image(f"rollouts/image {number}", pixels, records[0].step, dataformats="HWC")


def send_to_wandb(callback: WandbCallback, records: Records, images: Images) -> None:
    send_table(import_module("wandb"), records, images)


def send_to_trackio(callback: TrackioCallback, records: Records, images: Images) -> None:
    send_table(import_module("trackio"), records, images)


def send_table(tracker: Any, records: Records, images: Images) -> None:
    """A row for each rollout; `tracker` is the module wandb, or trackio, which has the same functions."""
    columns = [*shown_fields(records[0]), "images"]
    rows = [
        [*shown_fields(record).values(), [tracker.Image(images[name]) for name in record.media]] for record in records
    ]
    table = tracker.Table(columns=columns, data=rows)
    tracker.log({"rollouts": table, "train/global_step": records[0].step})


def send_to_swanlab(callback: SwanLabCallback, records: Records, images: Images) -> None:
    swanlab = import_module("swanlab")
    media = {"rollouts": [swanlab.Text(shown_text(record, images)) for record in records]}
    if images:
        media["images"] = [swanlab.Image(image, caption=f"image {i}") for i, image in enumerate(images.values())]
    swanlab.log(media, step=records[0].step)


TRACKERS: dict[type[TrainerCallback], Callable[[Any, Records, Images], None]] = {
    TensorBoardCallback: send_to_tensorboard,
    WandbCallback: send_to_wandb,
    TrackioCallback: send_to_trackio,
    SwanLabCallback: send_to_swanlab,
}
