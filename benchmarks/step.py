"""Whole optimiser steps of `VGPOTrainer` beside those of TRL's `GRPOTrainer`, on the embedded model.

Both train the same model on the same prompts with the same random numbers in one process, and take turns step by
step, so that whatever else the machine does hits both. Rollouts have a fixed length and the learning rate is 0:
every pair of steps does the same work. Peak memory is that of the tensors a step allocates, from the profiler.

python benchmarks/step.py [--steps 20] [--seed 0]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vgpo import toy
from vgpo.data import load_dataset, to_prompts
from vgpo.focus import banned_token_ids
from vgpo.rewards import accuracy_reward
from vgpo.trl import VGPOConfig, VGPOTrainer

WARM_UP = 2  # steps of each trainer that are not counted
RESPONSE = 32  # tokens of every rollout


class Turns(TrainerCallback):
    """Lets one trainer run a step while the other waits. A turn lasts from one step's begin to the next one's:
    rollouts, update, logging, and the reading of the next rows."""

    def __init__(
        self, trainer: "Contender", mine: threading.Semaphore, others: threading.Semaphore, seed: int
    ) -> None:
        self.trainer, self.mine, self.others, self.seed = trainer, mine, others, seed
        self.began: float | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        self._end_turn()
        self.mine.acquire()
        torch.manual_seed(self.seed + state.global_step)
        self.trainer.generation_seconds.append(0.0)
        self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self._end_turn()

    def _end_turn(self):
        if self.began is not None:
            self.trainer.step_seconds.append(time.perf_counter() - self.began)
            self.others.release()


@dataclass
class Contender:
    """A trainer and what was measured of it."""

    name: str
    trainer: GRPOTrainer
    step_seconds: list[float] = field(default_factory=list)
    generation_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        generate = self.trainer._generate_single_turn

        def timed(*args, **kwargs):
            start = time.perf_counter()
            output = generate(*args, **kwargs)
            self.generation_seconds[-1] += time.perf_counter() - start
            return output

        self.trainer._generate_single_turn = timed

    @property
    def steps(self) -> list[float]:
        return self.step_seconds[WARM_UP:]

    @property
    def updates(self) -> list[float]:
        pairs = zip(self.step_seconds, self.generation_seconds, strict=False)  # the step for memory is not timed
        return [step - generation for step, generation in pairs][WARM_UP:]


def contender(name: str, dataset: Dataset, folder: Path, arguments: argparse.Namespace) -> Contender:
    processor = AutoProcessor.from_pretrained(toy.checkpoint_path())
    model = AutoModelForImageTextToText.from_pretrained(toy.checkpoint_path(), dtype=torch.float32)
    trainer_class, config_class = {"GRPO": (GRPOTrainer, GRPOConfig), "VGPO": (VGPOTrainer, VGPOConfig)}[name]
    config = config_class(
        output_dir=str(folder / name), report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        max_steps=WARM_UP + arguments.steps, learning_rate=0.0, seed=arguments.seed, loss_type="dapo",
        num_generations=8, per_device_train_batch_size=32, gradient_accumulation_steps=2, bf16=False,
        max_completion_length=RESPONSE, gradient_checkpointing=False, dataloader_pin_memory=False,
        generation_kwargs={"min_new_tokens": RESPONSE, "suppress_tokens": banned_token_ids(model.config)},
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=accuracy_reward, args=config, train_dataset=dataset, processing_class=processor
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return Contender(name, trainer)


def train_or_exit(trainer: GRPOTrainer) -> None:
    """A failure must end the process: the other trainer would wait for its turn for ever."""
    try:
        trainer.train()
    except BaseException:  # noqa: BLE001 - it is shown, and the process ends
        traceback.print_exc()
        os._exit(1)


def take_turns(contenders: list[Contender], seed: int) -> None:
    """Train both, one step of each at a time."""
    gates = [threading.Semaphore(1), threading.Semaphore(0)]
    threads = []
    for i, runner in enumerate(contenders):
        runner.trainer.add_callback(Turns(runner, gates[i], gates[1 - i], seed))
        threads.append(threading.Thread(target=train_or_exit, args=(runner.trainer,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_memory(runner: Contender) -> None:
    """Peak bytes of one more step: of all tensors on a GPU, else of those that the step allocates."""
    trainer = runner.trainer
    trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if not isinstance(c, Turns)]
    trainer.args.max_steps = 1
    runner.generation_seconds.append(0.0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        runner.peak_bytes = torch.cuda.max_memory_allocated()
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    runner.peak_bytes = peak


def report(grpo: Contender, vgpo: Contender, seed: int) -> None:
    def ratio(mine: list[float], base: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(mine, base, strict=True))

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    console = Console()
    console.print(
        f"{device}; Python {platform.python_version()}, torch {torch.__version__}, trl {trl.__version__}, "
        f"transformers {transformers.__version__}; seed {seed}; commit {commit.strip() or 'none'}; "
        f"{len(vgpo.steps)} steps of 64 rollouts of {RESPONSE} tokens",
        highlight=False,
    )
    table = Table("median of steps", "GRPO (TRL)", "VGPO", "VGPO / GRPO, median of pairs")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, base, mine in (
        ("whole step", grpo.steps, vgpo.steps),
        ("without generation", grpo.updates, vgpo.updates),
    ):
        seconds = [f"{statistics.median(values) * 1e3:.0f} ms" for values in (base, mine)]
        table.add_row(label, *seconds, f"{ratio(mine, base):.3f}")
    memory_ratio = vgpo.peak_bytes / grpo.peak_bytes
    megabytes = [f"{runner.peak_bytes / 2**20:.1f} MiB" for runner in (grpo, vgpo)]
    table.add_row("peak of tensors", *megabytes, f"{memory_ratio:.3f}")
    console.print(table)
    print(json.dumps({"time_ratio": round(ratio(vgpo.steps, grpo.steps), 4), "memory_ratio": round(memory_ratio, 4)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of each trainer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        train, _ = toy.write_datasets(Path(folder), num_train=512, num_test=8, seed=arguments.seed)
        dataset = to_prompts(load_dataset(str(train)))
        grpo, vgpo = (contender(name, dataset, Path(folder), arguments) for name in ("GRPO", "VGPO"))
        take_turns([grpo, vgpo], arguments.seed)
        measure_memory(grpo)
        measure_memory(vgpo)
    report(grpo, vgpo, arguments.seed)


if __name__ == "__main__":
    main()
