"""The trackers of `report_to`: they also get rollouts and images, and a failing tracker does not end a training."""

import functools
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import SwanLabCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from vgpo.rewards.containment import StoppedBySignal
from vgpo.terminal import message_of
from vgpo.training.records import Images, RolloutRecord, RolloutWriter, code_block, shown_fields, shown_text

Records = Sequence[RolloutRecord]

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]

logger = logging.getLogger(__name__)


class Forgiving:
    """Calls functions of one tracker. Their errors become warnings, once per type of error.

    Args:
        tracker: its name in the warning.
    """

    def __init__(self, tracker: str) -> None:
        self.tracker = tracker
        self.started = True
        self._warned: set[type[BaseException]] = set()

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of `function`; None if it fails, or if the tracker could not be started."""
        if not self.started:
            return None
        try:
            return function(*args, **kwargs)
        except StoppedBySignal:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a tracker can raise anything
            self.started = function.__name__ != "on_train_begin"  # otherwise each event would retry and wait
            if type(error) not in self._warned:
                self._warned.add(type(error))
                logger.warning(
                    "%s failed: %s: %s. Training continues; the run folder has all metrics. %s", self.tracker,
                    type(error).__name__, message_of(error),
                    "More errors of this kind are not reported." if self.started else "It gets no metrics.",
                )  # fmt: skip
            return None


def forgive_trackers(callbacks: Sequence[TrainerCallback]) -> None:
    """Prevent trackers among a trainer's callbacks from ending its training; the objects are modified in place."""
    for callback in callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            forgiving = Forgiving(type(callback).__name__)
            for event in EVENTS:
                setattr(callback, event, functools.partial(forgiving, getattr(callback, event)))


class TrackedRollouts:
    """A rollout writer that passes records to another one, and to the trackers of the same trainer.

    Args:
        write: gets the records first, such as `RunFolder.write_rollouts`.
        callbacks: of the trainer (`trainer.callback_handler.callbacks`); read at each call.
    """

    def __init__(self, write: RolloutWriter, callbacks: Sequence[TrainerCallback]) -> None:
        self.write = write
        self.callbacks = callbacks
        self._forgiving: dict[type[TrainerCallback], Forgiving] = {}

    def __call__(self, records: Records, images: Images) -> None:
        self.write(records, images)
        for callback in self.callbacks:
            for kind, send in TRACKERS.items():
                if isinstance(callback, kind):
                    forgiving = self._forgiving.setdefault(kind, Forgiving(f"{kind.__name__} (rollouts)"))
                    forgiving(send, callback, records, images)


def send_to_tensorboard(callback: TensorBoardCallback, records: Records, images: Images) -> None:
    """A text per rollout, and each image once, under names that later steps reuse."""
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
    """A row per rollout; `tracker` is the module wandb, or trackio, which has the same functions."""
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
