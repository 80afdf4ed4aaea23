"""The toy model and task: a tiny Qwen2.5-VL that reads grids of handwritten digits."""

from pathlib import Path

from vgpo.toy.datasets import NUM_ROWS, write_datasets, write_split
from vgpo.toy.scans import Scans, load_scans
from vgpo.toy.task import QUESTION_KINDS, Question, TaskSettings, draw_question, parse_task, render
from vgpo.toy.warmstart import WarmstartLog, WarmstartSettings, warmstart

__all__ = [
    "NUM_ROWS",
    "QUESTION_KINDS",
    "Question",
    "Scans",
    "TaskSettings",
    "WarmstartLog",
    "WarmstartSettings",
    "checkpoint_path",
    "draw_question",
    "load_scans",
    "parse_task",
    "render",
    "warmstart",
    "write_datasets",
    "write_split",
]


def checkpoint_path() -> Path:
    """The toy checkpoint's folder, for ``AutoModelForImageTextToText`` and ``AutoProcessor``."""
    return Path(__file__).parent / "checkpoint"
