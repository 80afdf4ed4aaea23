"""Workload, settings and contestants of a benchmark: VGPO and TRL's GRPO on the same work, in turns."""

import argparse
import gc
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from benchmarks import models
from benchmarks.turns import WARM_UP, Contender, clock_of, take_turns
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from vgpo import toy
from vgpo.data import load_dataset, to_prompts
from vgpo.focus import banned_token_ids
from vgpo.policy.parts import freeze_parts
from vgpo.trl import VGPOConfig, VGPOTrainer

HEADLINE = 8  # rollouts per group in the last line of a benchmark
FROZEN = ("vision", "projector")  # parts that `--frozen` freezes
CLASSES: dict[str, tuple[type[GRPOTrainer], type[GRPOConfig]]] = {
    "GRPO": (GRPOTrainer, GRPOConfig),
    "VGPO": (VGPOTrainer, VGPOConfig),
}


@dataclass(frozen=True)
class Plan:
    """What one call measures, and how.

    Args:
        runs: cases with their group sizes, in this order.
        steps: counted rounds of each trainer.
        micro_batches: rows, the largest first; empty for one of the complete group.
        frozen: whether vision tower and projector are frozen.
        updates: optimizer steps of a generation.
        cpu_time: whether CPU seconds are counted.
    """

    bench: models.Bench
    runs: tuple[tuple[str, int], ...]
    steps: int
    seed: int
    device: str
    micro_batches: tuple[int, ...] = ()
    frozen: bool = False
    updates: int = 1
    cpu_time: bool = False

    @property
    def num_steps(self) -> int:
        """Optimizer steps of each trainer: rounds to warm up, those that count, and one for memory."""
        return (WARM_UP + self.steps + 1) * self.updates

    def __str__(self) -> str:
        return f"{self.steps} rounds of each trainer, {'CPU' if self.cpu_time else 'wall'} time"


@dataclass(frozen=True)
class Workload:
    """What the contenders train, and how: the weights of `model`, and `settings` of the trainers.

    Args:
        response: tokens of a rollout.
        group: rollouts of a prompt.
        rollouts: those of an optimizer step.
        micro_batches: rows, the largest first.
        generates: whether rollouts are sampled from the model.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    prompts: datasets.Dataset
    response: int
    group: int
    rollouts: int
    micro_batches: tuple[int, ...]
    settings: dict[str, Any]
    generates: bool = True


@dataclass(frozen=True)
class Entrant:
    """A trainer in the comparison.

    Args:
        kind: one of `CLASSES`.
        micro_batch: rows of its `per_device_train_batch_size`.
        settings: of its configuration.
        prepare: what is done to the trainer before it trains.
    """

    kind: str
    micro_batch: int
    settings: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[GRPOTrainer], None] | None = None


def lineup(micro_batches: Sequence[int], *, frozen: bool) -> dict[str, Entrant]:
    """The trainers by name: rivals at the largest micro-batch, VGPO at each."""
    largest, smallest = micro_batches[0], micro_batches[-1]
    entrants = {f"GRPO@{largest}": Entrant("GRPO", largest)}
    entrants |= {f"VGPO@{size}": Entrant("VGPO", size) for size in micro_batches}
    if smallest == 1:
        entrants["GRPO@1"] = Entrant("GRPO", 1)
    if frozen:
        entrants[f"VGPO tower@{largest}"] = Entrant("VGPO", largest, prepare=run_tower_each_time)
    elif smallest == largest:
        entrants[f"VGPO off@{largest}"] = Entrant("VGPO", largest, {"share_prompt": "off"})
    return entrants


def run_tower_each_time(trainer: GRPOTrainer) -> None:
    """TO BE FILLED IN: keep no output of a frozen vision tower, so that each pass of `trainer` runs it.

    Raises:
        NotImplementedError: this version of the trainer has no such switch.
    """
    switch = "keep_vision_outputs"
    if not hasattr(trainer, switch):
        raise NotImplementedError(
            f"--frozen compares with a VGPO that runs the frozen tower in each pass, but {type(trainer).__name__} has "
            f"no attribute {switch!r} that turns kept outputs off. Name the switch in run_tower_each_time, {__file__}."
        )
    setattr(trainer, switch, False)


def random_workload(plan: Plan, case: models.Case, group: int, num_prompts: int | None = None) -> Workload:
    """One group a step, of a random model; by default a prompt for each step."""
    bench = plan.bench
    processor = models.processor_for(case)
    prompts = models.random_prompts(case, num_prompts or plan.num_steps, plan.seed)
    found = models.mean_lengths(prompts, processor)
    assert found == (case.prompt, case.side**2), f"prompts have {found} tokens (all, visual), expected {case}"
    return Workload(
        model=models.random_model(bench, processor.tokenizer, plan.seed, plan.device),
        processor=processor,
        prompts=prompts,
        response=case.response,
        group=group,
        rollouts=group,
        micro_batches=plan.micro_batches or (group,),
        settings={
            "bf16": bench.dtype == torch.bfloat16, "gradient_checkpointing": bench.checkpointing, "optim": bench.optim,
        },
        generates=bench.generates,
    )  # fmt: skip


def embedded_workload(plan: Plan, folder: Path) -> Workload:
    """The quickstart's model and task: 8 groups of 8 rollouts per step."""
    train, _ = toy.write_datasets(folder, num_train=512, num_test=8, seed=plan.seed)
    path = toy.checkpoint_path()
    return Workload(
        model=AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32),
        processor=AutoProcessor.from_pretrained(path),
        prompts=to_prompts(load_dataset(str(train))),
        response=32,
        group=HEADLINE,
        rollouts=rollouts_of(models.EMBEDDED, HEADLINE),
        micro_batches=plan.micro_batches or (32,),
        settings={"bf16": False, "gradient_checkpointing": False},
    )


def rollouts_of(case: str, group: int) -> int:
    """Rollouts of an optimizer step."""
    return 8 * HEADLINE if case == models.EMBEDDED else group


def random_rollouts(work: Workload) -> Callable[..., tuple[list[list[int]], None]]:
    """A replacement for a trainer's generation: ordinary tokens, none of which ends a response."""
    low, high = 1 + max(work.processor.tokenizer.all_special_ids), len(work.processor.tokenizer)

    def draw(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        return torch.randint(low, high, (len(prompt_ids), work.response)).tolist(), None

    return draw


def checksum(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A cheap reward that differs between rollouts, so that no gradient is zero."""
    return [float(sum(ids) % 101) for ids in completion_ids]


def make_contender(name: str, entrant: Entrant, work: Workload, plan: Plan, folder: Path) -> Contender:
    trainer_class, config_class = CLASSES[entrant.kind]
    model = models.twin(work.model)
    if plan.frozen:
        freeze_parts(model, FROZEN)
    accumulation = work.rollouts // entrant.micro_batch
    config = config_class(
        output_dir=str(folder / name), report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        max_steps=plan.num_steps, learning_rate=0.0, seed=plan.seed, loss_type="dapo", use_cpu=plan.device == "cpu",
        num_generations=work.group, per_device_train_batch_size=entrant.micro_batch,
        gradient_accumulation_steps=accumulation, steps_per_generation=plan.updates * accumulation,
        max_completion_length=work.response, dataloader_pin_memory=False,
        generation_kwargs={"min_new_tokens": work.response, "suppress_tokens": banned_token_ids(model.config)},
        **work.settings, **entrant.settings,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=checksum, args=config, train_dataset=work.prompts, processing_class=work.processor
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not work.generates:
        trainer._generate_single_turn = random_rollouts(work)
    if entrant.prepare is not None:
        entrant.prepare(trainer)
    return Contender(name, trainer, plan.updates, clock_of(plan.device, cpu_time=plan.cpu_time))


def no_progress(text: str) -> None:
    """Says nothing of how far a measurement is."""


def compare(
    work: Workload, plan: Plan, entrants: dict[str, Entrant], progress: Callable[[str], None] = no_progress
) -> dict[str, Contender]:
    """Train all entrants, one round of each at a time."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            name: make_contender(name, entrant, work, plan, Path(folder)) for name, entrant in entrants.items()
        }
        take_turns(list(contenders.values()), plan.seed, plan.device, progress)
    return contenders


def free_memory(device: str) -> None:
    gc.collect()  # trainers hold themselves in cycles
    if device == "cuda":
        torch.cuda.empty_cache()


def workload(plan: Plan, case: str, group: int, folder: Path) -> Workload:
    if case == models.EMBEDDED:
        return embedded_workload(plan, folder)
    return random_workload(plan, plan.bench.cases[case], group)


def quieten() -> None:
    """Leave out warnings that say nothing about what is measured."""
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)  # names inside TRL


def check_cpu_time(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.cpu_time and arguments.device != "cpu":
        parser.error(f"--cpu-time with --device {arguments.device}: expected --device cpu, whose seconds are counted")
