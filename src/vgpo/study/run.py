"""One run of a study, in its own process: train, measure grounding, evaluate, seal the folder."""

import dataclasses
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from vgpo.evaluation import Evaluation, evaluate
from vgpo.evaluation.grounding import measure_grounding
from vgpo.recipe.files import read_mapping
from vgpo.recipe.loading import check_image_token, quiet_libraries
from vgpo.recipe.recipe import Recipe, load_recipe
from vgpo.recipe.setup import Setup
from vgpo.recipe.train import train_recipe
from vgpo.run.storage import to_json, write_file
from vgpo.study.file import write_recipe
from vgpo.study.folder import StudyRun
from vgpo.study.suite import evaluate_run
from vgpo.terminal import say

KIB = 1024


def run(folder: Path, overrides: Sequence[str], *, start: bool, jobs: int, launch: Sequence[str] = ()) -> None:
    """Complete the run in `folder`, which contains its recipe, from its current state.

    Args:
        folder: of a `vgpo.study.folder.StudyRun`.
        overrides: `--field value` words beside the recipe.
        start: only measure and evaluate the start model, without training.
        jobs: number of runs that share the machine, for the record.
        launch: words before `-m vgpo.cli train` that start the training in several processes.

    Raises:
        SystemExit: A training that was launched failed, or a signal ended it.
        EvaluationError, ImportError: The model could not be evaluated on benchmarks.
    """
    quiet_libraries()
    one, began = StudyRun(folder), time.process_time()
    words = [*overrides, "--run_dir", str(folder), "--resume", "true", "--disable_tqdm", "true"]
    recipe = load_recipe(one.recipe_path, words)
    if not start:
        peak = None  # of a process that was killed after its training, and of processes that were launched
        if launch:
            train_launched(one, words, launch)
        elif not one.is_trained:
            train_recipe(one.recipe_path, words, command=sys.argv)
            peak = peak_memory(recipe.config.device)
        if peak is not None or not one.usage_path.is_file():
            usage = {
                "peak_memory_bytes": peak, "memory_of": memory_of(recipe.config.device), "jobs": jobs,
                "cpu_seconds": time.process_time() - began,
            }  # fmt: skip
            write_file(one.usage_path, to_json(usage) + b"\n")
    if not one.probe_path.is_file():  # of an earlier start, which ended in the evaluation on benchmarks
        write_file(one.probe_path, to_json(grounding_of(recipe, one, start=start)) + b"\n")
    if one.suite_path.is_file():
        gc.collect()  # free the measured model before it is loaded again
        evaluate_run(one, recipe, start=start)
    for checkpoint in one.folder.checkpoints_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # not needed for a resume any more; the final weights are kept
    one.seal()
    say(Console(), f"done: {folder}")


def train_launched(one: StudyRun, words: Sequence[str], launch: Sequence[str]) -> None:
    """Train in several processes, unless done. They do not evaluate: this process does so afterwards.

    A signal that ends this process is passed on to them.

    Raises:
        SystemExit: They failed.
    """
    if one.folder.read_finished() is not None:
        return
    values = {name: value for name, value in read_mapping(one.recipe_path).items() if name != "eval_data"}
    recipe = write_recipe(one.path / "launched.yaml", values)
    pairs = zip(words[::2], words[1::2], strict=True)
    fields = [word for pair in pairs if pair[0] != "--eval_data" for word in pair]
    command = [*launch, "-m", "vgpo.cli", "train", "--config", str(recipe), *fields]
    with passing_on_signals() as processes:
        # They hold the lock of the study too.
        processes.append(subprocess.Popen(command, start_new_session=True, close_fds=False))
        status = processes[0].wait()
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextmanager
def passing_on_signals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Inside the block SIGTERM ends the processes in the list, each with what it started, and not this one.

    Raises:
        SystemExit: It came before there was a process.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not processes:
            raise SystemExit(128 + number)
        for process in processes:
            os.killpg(process.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield processes
    finally:
        signal.signal(signal.SIGTERM, before)


def grounding_of(recipe: Recipe, one: StudyRun, *, start: bool) -> dict[str, Any]:
    """Measure the grounding of a run's trained or start model on the held-out questions, after its evaluation.

    Adapters are merged into their base, which is not quantized for that.
    """
    if not start:
        trained = {"model_name_or_path": str(one.final_path), "load_in_4bit": False, "load_in_8bit": False}
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **trained))
    config = recipe.config
    setup = Setup(recipe, one.path / "data")
    model = setup.model.to(config.device)
    check_image_token(model, setup.processor)
    answering = {
        "batch_size": config.per_device_eval_batch_size,
        "max_new_tokens": config.max_completion_length,
        "chat_template_kwargs": config.chat_template_kwargs,
    }
    when = "before" if start else "after"
    known = one.folder.read_evaluation() or {}
    if when in known:
        true = Evaluation(**known[when])
    else:  # of a start, and of a training in several processes
        true = evaluate(model, setup.processor, setup.held_out, progress=False, **answering)
        one.folder.write_evaluation({when: dataclasses.asdict(true)})
    found = measure_grounding(
        model, setup.processor, setup.held_out, true, temperature=config.temperature, **answering
    )
    sets = read_mapping(one.held_out_path) if one.held_out_path.is_file() else {}
    return found | {
        "held_out_sets": {
            name: dataclasses.asdict(
                evaluate(model, setup.processor, setup.read_set(source), progress=False, **answering)
            )["accuracy"]
            for name, source in sets.items()
        }
    }


def memory_of(device: torch.device) -> str:
    """The device whose memory is measured: the GPU's name, or the process."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "process"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of PyTorch on the GPU, or without one of this process, including libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB
