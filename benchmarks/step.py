"""Whole optimiser steps of `VGPOTrainer` beside those of TRL's `GRPOTrainer`.

All train the same weights on the same prompts with the same random numbers in one process, and take turns step by
step, so that whatever else the machine does hits all of them. Rollouts have a fixed length and the learning rate is
0: every round of steps does the same work. Of each case and group size the table shows ratios, each the median over
the rounds: `update` is a step without its generation, `off` is VGPO beside VGPO that shares no prompt. The floor is
the share of tokens that is left when a group's prompt is computed once, (P + G T) / (G (P + T)); as of the picture's
patches only 1 / G are left, a step with a large vision tower can lie below it.

    python benchmarks/step.py [--cases image_heavy ...] [--groups 8 ...] [--steps 5] [--device cpu] [--json FILE]

`--model` measures a model of real size with random weights in bf16, with gradient checkpointing: prompts of 1,200
tokens, of which 1,024 are visual, and responses of 500, drawn at random instead of generated. The optimiser is SGD,
which keeps no state; AdamW's step would add the same time to all.

The last line is JSON: the ratios at 8 rollouts a group. `benchmarks/chart.py` draws FILE, which is written after each
case.
"""

import argparse
import gc
import itertools
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from vgpo import toy
from vgpo.data import load_dataset, to_prompts
from vgpo.focus import banned_token_ids
from vgpo.trl import VGPOConfig, VGPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import models, record

WARM_UP = 1  # step of each trainer that is not counted
HEADLINE = 8  # rollouts a group in the last line
GIB = 2**30

CONTENDERS: dict[str, tuple[type[GRPOTrainer], type[GRPOConfig], dict[str, Any]]] = {
    "GRPO": (GRPOTrainer, GRPOConfig, {}),
    "VGPO": (VGPOTrainer, VGPOConfig, {}),
    "VGPO off": (VGPOTrainer, VGPOConfig, {"share_prompt": "off"}),
}
# What is divided by what: phase, contender, its rival.
RATIOS = {
    "time_ratio": ("update", "VGPO", "GRPO"),
    "generation_ratio": ("generation", "VGPO", "GRPO"),
    "step_ratio": ("step", "VGPO", "GRPO"),
    "off_ratio": ("update", "VGPO", "VGPO off"),
}


@dataclass(frozen=True)
class Plan:
    """What one call measures: cases with their group sizes, in this order."""

    bench: models.Bench
    runs: tuple[tuple[str, int], ...]
    steps: int
    seed: int
    device: str


@dataclass(frozen=True)
class Workload:
    """What the contenders train, and how: the weights of `model`, and `settings` of the trainers."""

    model: PreTrainedModel
    processor: ProcessorMixin
    prompts: datasets.Dataset
    response: int
    settings: dict[str, Any]
    generates: bool = True

    @property
    def group(self) -> int:
        return self.settings["num_generations"]

    @property
    def rollouts(self) -> int:
        return self.settings["per_device_train_batch_size"] * self.settings["gradient_accumulation_steps"]


def random_workload(
    bench: models.Bench, case: models.Case, group: int, num_steps: int, seed: int, device: str
) -> Workload:
    """One group a step, of a random model."""
    processor = models.processor_for(case)
    prompts = models.random_prompts(case, num_steps, seed)
    found = models.mean_lengths(prompts, processor)
    assert found == (case.prompt, case.side**2), f"prompts have {found} tokens (all, visual), expected {case}"
    return Workload(
        model=models.random_model(bench, processor.tokenizer, seed, device),
        processor=processor,
        prompts=prompts,
        response=case.response,
        settings={
            "num_generations": group, "per_device_train_batch_size": group, "gradient_accumulation_steps": 1,
            "bf16": bench.dtype == torch.bfloat16, "gradient_checkpointing": bench.checkpointing, "optim": bench.optim,
        },
        generates=bench.generates,
    )  # fmt: skip


def embedded_workload(folder: Path, seed: int) -> Workload:
    """The quickstart's model and task: 8 groups of 8 rollouts a step."""
    train, _ = toy.write_datasets(folder, num_train=512, num_test=8, seed=seed)
    path = toy.checkpoint_path()
    return Workload(
        model=AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32),
        processor=AutoProcessor.from_pretrained(path),
        prompts=to_prompts(load_dataset(str(train))),
        response=32,
        settings={
            "num_generations": 8, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 2,
            "bf16": False, "gradient_checkpointing": False,
        },
    )  # fmt: skip


def random_rollouts(work: Workload) -> Callable[..., tuple[list[list[int]], None]]:
    """What stands in for a trainer's generation: ordinary tokens of the tokenizer, none of which ends a response."""
    low, high = 1 + max(work.processor.tokenizer.all_special_ids), len(work.processor.tokenizer)

    def draw(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        return torch.randint(low, high, (len(prompt_ids), work.response)).tolist(), None

    return draw


def checksum(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that costs nothing and tells rollouts apart, so that no gradient is zero."""
    return [float(sum(ids) % 101) for ids in completion_ids]


class Ring:
    """Passes the turn round the contenders, from the first one on when all are there.

    Until then they prepare themselves, and draw from the random numbers that they share.
    """

    def __init__(self, size: int) -> None:
        self.gates = [threading.Semaphore(0) for _ in range(size)]
        self.missing = set(range(size))
        self.lock = threading.Lock()
        self.failure: BaseException | None = None

    def wait(self, place: int) -> None:
        with self.lock:
            if self.missing == {place}:
                self.gates[0].release()
            self.missing.discard(place)
        self.gates[place].acquire()
        if self.failure is not None:
            raise RuntimeError("Another trainer failed.") from self.failure

    def pass_on(self, place: int) -> None:
        self.gates[(place + 1) % len(self.gates)].release()

    def fail(self, failure: BaseException) -> None:
        """Wake all who wait: a turn would never come."""
        self.failure = self.failure or failure
        for gate in self.gates:
            gate.release()


def now(device: str) -> float:
    """Seconds, with all work on the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class MemoryMeter:
    """Peak bytes of tensors that are allocated between `start` and `stop`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def start(self) -> None:
        if self.device == "cuda":
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self.profiler.start()

    def stop(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self.before
        self.profiler.stop()
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        return max(itertools.accumulate(changes))


@dataclass
class Contender:
    """A trainer and what was measured of it."""

    name: str
    trainer: GRPOTrainer
    device: str
    step_seconds: list[float] = field(default_factory=list)
    generation_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        generate = self.trainer._generate_single_turn

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now(self.device)
            output = generate(*args, **kwargs)
            self.generation_seconds[-1] += now(self.device) - start
            return output

        self.trainer._generate_single_turn = timed

    @property
    def seconds(self) -> dict[str, list[float]]:
        """Of each phase, by counted step: neither those to warm up nor the last, for memory."""
        counted = slice(WARM_UP, -1)
        steps, generations = self.step_seconds[counted], self.generation_seconds[counted]
        updates = [step - generation for step, generation in zip(steps, generations, strict=True)]
        return {"update": updates, "generation": generations, "step": steps}


class Turns(TrainerCallback):
    """Lets one trainer run a step while the others wait. A turn lasts from one step's begin to the next one's:
    rollouts, update, logging, and the reading of the next rows. The last one is for memory."""

    def __init__(self, contender: Contender, ring: Ring, place: int, seed: int) -> None:
        self.contender, self.ring, self.place, self.seed = contender, ring, place, seed
        self.meter = MemoryMeter(contender.device)
        self.began: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_turn()
        self.ring.wait(self.place)
        torch.manual_seed(self.seed + state.global_step)
        self.contender.generation_seconds.append(0.0)
        if state.global_step == state.max_steps - 1:
            self.contender.trainer._buffered_inputs = None  # to be freed before, not during the step
            self.meter.start()
        self.began = now(self.contender.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.contender.peak_bytes = self.meter.stop()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_turn()

    def _end_turn(self) -> None:
        if self.began is not None:
            self.contender.step_seconds.append(now(self.contender.device) - self.began)
            self.ring.pass_on(self.place)


def make_contender(name: str, work: Workload, num_steps: int, seed: int, device: str, folder: Path) -> Contender:
    trainer_class, config_class, settings = CONTENDERS[name]
    model = models.twin(work.model)
    config = config_class(
        output_dir=str(folder / name), report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        max_steps=num_steps, learning_rate=0.0, seed=seed, loss_type="dapo", use_cpu=device == "cpu",
        max_completion_length=work.response, dataloader_pin_memory=False,
        generation_kwargs={"min_new_tokens": work.response, "suppress_tokens": banned_token_ids(model.config)},
        **work.settings, **settings,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=checksum, args=config, train_dataset=work.prompts, processing_class=work.processor
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not work.generates:
        trainer._generate_single_turn = random_rollouts(work)
    return Contender(name, trainer, device)


def compare(work: Workload, steps: int, seed: int, device: str) -> dict[str, Contender]:
    """Train all contenders, one step of each at a time."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            name: make_contender(name, work, total_steps(steps), seed, device, Path(folder)) for name in CONTENDERS
        }
        ring = Ring(len(contenders))
        threads = []
        for place, contender in enumerate(contenders.values()):
            contender.trainer.add_callback(Turns(contender, ring, place, seed))
            threads.append(threading.Thread(target=train, args=(contender.trainer, ring)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    if ring.failure is not None:
        raise ring.failure
    return contenders


def total_steps(steps: int) -> int:
    return WARM_UP + steps + 1


def train(trainer: GRPOTrainer, ring: Ring) -> None:
    try:
        trainer.train()
    except BaseException as failure:  # noqa: BLE001 - it is raised again where all threads have ended
        ring.fail(failure)


def measure(work: Workload, steps: int, seed: int, device: str) -> dict[str, Any]:
    """One row of the results: sizes, ratios with their quartiles, and the medians they come from."""
    contenders = compare(work, steps, seed, device)
    group, response = work.group, work.response
    prompt, visual = models.mean_lengths(work.prompts, work.processor)
    seconds = {name: contender.seconds for name, contender in contenders.items()}
    pairs = {
        key: zip(seconds[mine][phase], seconds[rival][phase], strict=True)
        for key, (phase, mine, rival) in RATIOS.items()
        if work.generates or phase != "generation"
    }
    return {
        "group": group,
        "prompt": prompt,
        "visual": visual,
        "response": response,
        "rollouts": work.rollouts,
        "floor": (prompt + group * response) / (group * (prompt + response)),
        "memory_ratio": contenders["VGPO"].peak_bytes / contenders["GRPO"].peak_bytes,
        "ratios": {key: quartiles([a / b for a, b in values]) for key, values in pairs.items()},
        "seconds": {
            name: {phase: statistics.median(values) for phase, values in phases.items()}
            for name, phases in seconds.items()
        },
        "peak_bytes": {name: contender.peak_bytes for name, contender in contenders.items()},
        "weight_bytes": sum(p.numel() * p.element_size() for p in work.model.parameters()),
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"low": low, "median": median, "high": high}


def measure_all(plan: Plan, console: Console) -> Iterator[dict[str, Any]]:
    """The rows of the results, one by one."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (case, group) in enumerate(plan.runs, 1):
            with console.status(f"{case}, {group} rollouts a group ({number} of {len(plan.runs)})"):
                work = workload(plan, case, group, Path(folder))
                row = {"case": case, **measure(work, plan.steps, plan.seed, plan.device)}
            del work
            gc.collect()  # trainers hold themselves in cycles
            if plan.device == "cuda":
                torch.cuda.empty_cache()
            yield row


def workload(plan: Plan, case: str, group: int, folder: Path) -> Workload:
    if case == models.EMBEDDED:
        return embedded_workload(folder, plan.seed)
    return random_workload(plan.bench, plan.bench.cases[case], group, total_steps(plan.steps), plan.seed, plan.device)


def report(results: Sequence[dict[str, Any]], plan: Plan, environment: dict[str, Any], console: Console) -> None:
    console.print(f"{record.describe(environment)}; {plan.steps} steps of each trainer", highlight=False)
    columns = ("G", "P", "V", "T", "floor", "update", "reached", "generation", "step", "memory", "off", "s", "GiB")
    table = Table("case", *columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in results:
        medians = {name: f"{ratio['median']:.3f}" for name, ratio in row["ratios"].items()}
        saved = (1 - row["ratios"]["time_ratio"]["median"]) / (1 - row["floor"])
        sizes = [f"{row[name]:.0f}" for name in ("group", "prompt", "visual", "response")]
        table.add_row(
            row["case"], *sizes, f"{row['floor']:.3f}", medians["time_ratio"], f"{saved:.0%}",
            medians.get("generation_ratio", "-"), medians["step_ratio"], f"{row['memory_ratio']:.3f}",
            medians["off_ratio"], f"{row['seconds']['VGPO']['update']:.2f}",
            f"{row['peak_bytes']['VGPO'] / GIB:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "P prompt, V visual, T response tokens; G rollouts a group; update: VGPO / GRPO without generation; reached: "
        "share of the saving that the floor leaves; memory: VGPO / GRPO, peak of what a step allocates; off: update "
        "of VGPO / VGPO without sharing; s, GiB: update and memory of VGPO.",
        highlight=False,
    )
    for row in results:
        for name, goal in plan.bench.goals:
            found = row[name] if name in row else row["ratios"][name]["median"]
            console.print(f"{row['case']}, G {row['group']}: {name} {found:.3f}, goal at most {goal}", highlight=False)


def headline(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each case its ratios at `HEADLINE` rollouts a group."""
    names = ("time_ratio", "memory_ratio", "floor", "generation_ratio", "off_ratio")
    lines = {}
    for row in results:
        values = {**row, **{name: ratio["median"] for name, ratio in row["ratios"].items()}}
        if row["group"] == HEADLINE:
            lines[row["case"]] = {name: round(values[name], 4) for name in names if name in values}
    return lines


def parse_plan() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser)
    parser.add_argument("--model", choices=models.MODELS, help="a model of real size; by default one of the device's")
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--groups", nargs="+", type=int, help="rollouts of a prompt")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each trainer")
    arguments = parser.parse_args()
    bench = models.MODELS[arguments.model] if arguments.model else models.BENCHES[arguments.device]
    choices = [*bench.cases, *([] if arguments.model else [models.EMBEDDED])]
    cases = arguments.cases or list(bench.default_cases)
    if unknown := sorted(set(cases) - set(choices)):
        parser.error(f"--cases {' '.join(unknown)}: expected some of {', '.join(choices)}")
    groups = arguments.groups or bench.default_groups
    runs = [(case, group) for case in cases if case != models.EMBEDDED for group in groups]
    runs += [(models.EMBEDDED, HEADLINE)] if models.EMBEDDED in cases else []
    bench = models.tiny(bench) if arguments.tiny else bench
    return Plan(bench, tuple(runs), arguments.steps, arguments.seed, arguments.device), arguments.json


def main() -> None:
    plan, file = parse_plan()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)  # names inside TRL
    console = Console(width=119)
    environment = record.environment(plan.seed, plan.device)
    results: list[dict[str, Any]] = []
    for row in measure_all(plan, console):
        results.append(row)
        time_ratio = row["ratios"]["time_ratio"]["median"]
        console.print(
            f"{row['case']}, G {row['group']}: update {time_ratio:.3f}, memory {row['memory_ratio']:.3f}",
            highlight=False,
        )
        record.write(file, environment, steps=plan.steps, goals=dict(plan.bench.goals), results=results)
    report(results, plan, environment, console)
    record.print_line(headline(results), environment)


if __name__ == "__main__":
    main()
