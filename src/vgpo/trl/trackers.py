"""Rollouts and their pictures for the trackers of `report_to`, beside those that the run folder keeps."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import SwanLabCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from vgpo.text import visible

Records = Sequence[dict[str, Any]]


class TrackedRollouts:
    """A rollout writer that hands records to another one, and to the trackers that listen to the same trainer.

    Args:
        write: takes the records first, as `RunFolder.write_rollouts`.
        callbacks: of the trainer (`trainer.callback_handler.callbacks`); read at each call.
    """

    def __init__(self, write: Callable[[list[dict[str, Any]]], None], callbacks: Sequence[TrainerCallback]) -> None:
        self.write = write
        self.callbacks = callbacks

    def __call__(self, records: list[dict[str, Any]]) -> None:
        self.write(records)
        for callback in self.callbacks:
            for kind, send in TRACKERS.items():
                if isinstance(callback, kind):
                    send(callback, records)


def send_to_tensorboard(callback: TensorBoardCallback, records: Records) -> None:
    """A text for each rollout and an image for each picture, under names that later steps take again."""
    pictures = distinct_pictures(records)
    for number, record in enumerate(records):
        shown = [list(pictures).index(id(picture)) for picture in record["images"]]
        callback.tb_writer.add_text(f"rollouts/{number}", code_block(summary(record, shown)), record["step"])
    for number, picture in enumerate(pictures.values()):
        pixels = np.asarray(picture.convert("RGB"))
        callback.tb_writer.add_image(f"rollouts/picture {number}", pixels, records[0]["step"], dataformats="HWC")


def send_to_wandb(callback: WandbCallback, records: Records) -> None:
    send_table(import_module("wandb"), records)


def send_to_trackio(callback: TrackioCallback, records: Records) -> None:
    send_table(import_module("trackio"), records)


def send_table(tracker: Any, records: Records) -> None:
    """A row for each rollout; `tracker` is the module wandb, or trackio, which speaks like it."""
    columns = [*fields(records[0]), "pictures"]
    rows = [[*fields(record).values(), [tracker.Image(picture) for picture in record["images"]]] for record in records]
    table = tracker.Table(columns=columns, data=rows)
    tracker.log({"rollouts": table, "train/global_step": records[0]["step"]})


def send_to_swanlab(callback: SwanLabCallback, records: Records) -> None:
    swanlab = import_module("swanlab")
    pictures = distinct_pictures(records)
    shown = [[list(pictures).index(id(picture)) for picture in record["images"]] for record in records]
    media = {"rollouts": [swanlab.Text(summary(*each)) for each in zip(records, shown, strict=True)]}
    if pictures:
        images = [swanlab.Image(picture, caption=f"picture {i}") for i, picture in enumerate(pictures.values())]
        media["pictures"] = images
    swanlab.log(media, step=records[0]["step"])


TRACKERS: dict[type[TrainerCallback], Callable[[Any, Records], None]] = {
    TensorBoardCallback: send_to_tensorboard,
    WandbCallback: send_to_wandb,
    TrackioCallback: send_to_trackio,
    SwanLabCallback: send_to_swanlab,
}


def distinct_pictures(records: Records) -> dict[int, Image.Image]:
    """The pictures of all records by `id`: rollouts of a group share one object."""
    return {id(picture): picture for record in records for picture in record["images"]}


def fields(record: dict[str, Any]) -> dict[str, Any]:
    """What a table shows of a rollout, texts with nothing in them that steers a terminal or a page."""
    focus = [rho for rho in record["focus"] or [] if rho is not None]
    return {
        "step": record["step"],
        "row": record["row"],
        "problem": visible(record["problem"]),
        "answer": visible(str(record["answer"])),
        "completion": visible(record["completion"]),
        **{f"reward/{visible(name)}": reward for name, reward in record["rewards"].items()},
        "advantage": record["advantage"],
        "mean focus": float(np.mean(focus)) if focus else None,
    }


def summary(record: dict[str, Any], pictures: Sequence[int]) -> str:
    """The fields of a rollout as text, with the numbers of its pictures."""
    lines = {**fields(record), "pictures": ", ".join(map(str, pictures)) or "none"}
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def code_block(text: str) -> str:
    """Markdown that shows `text` as it is: no line of an indented block can end it."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
