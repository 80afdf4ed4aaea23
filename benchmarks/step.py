"""Whole optimiser steps of `VGPOTrainer` beside those of TRL's `GRPOTrainer`.

All train the same model on the same prompts with the same random numbers in one process, and take turns step by
step, so that whatever else the machine does hits all of them. Rollouts have a fixed length and the learning rate is
0: every round of steps does the same work. Of each case and group size the table shows ratios, each the median over
the rounds: `update` is a step without its generation, `off` is VGPO beside VGPO that shares no prompt. The floor is
the share of tokens that is left when a group's prompt is computed once, (P + G T) / (G (P + T)); as of the picture's
patches only 1 / G are left, a step with a large vision tower can lie below it.

    python benchmarks/step.py [--cases image_heavy ...] [--groups 8 ...] [--steps 5] [--device cpu] [--json FILE]

The last line is JSON: the ratios at 8 rollouts a group. `benchmarks/chart.py` draws FILE.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from vgpo import toy
from vgpo.data import load_dataset, to_prompts
from vgpo.focus import banned_token_ids
from vgpo.report.environment import describe_environment
from vgpo.trl import VGPOConfig, VGPOTrainer

WARM_UP = 1  # step of each trainer that is not counted
HEADLINE = 8  # rollouts a group in the last line
EMBEDDED = "embedded"  # the case of the quickstart's model and task
CELL = 28  # pixels of a visual token's side
TEMPLATE_TOKENS = 10  # what the chat template writes around picture and text

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
class Case:
    """A prompt of `prompt` tokens, `side` x `side` of them visual, and rollouts of `response` tokens."""

    prompt: int
    side: int
    response: int


@dataclass(frozen=True)
class Bench:
    """What is measured on a kind of device: the sizes of a random Qwen2.5-VL, its precision, and the cases."""

    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: torch.dtype
    cases: dict[str, Case]


# Prompt to response is 4:1, 1:1 and 1:4 tokens: on this and the group's size alone the floor depends. Shorter prompts,
# of which the picture is still the greater part, keep steps of the last two cases as short as those of the first.
BENCHES = {
    # 17 million parameters.
    "cpu": Bench(
        text={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
              "num_key_value_heads": 2, "vocab_size": 512},
        vision={"depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4,
                "fullatt_block_indexes": [3]},
        dtype=torch.float32,
        cases={"image_heavy": Case(300, 16, 75), "balanced": Case(100, 8, 100), "text_heavy": Case(48, 5, 192)},
    ),
    # 0.6 billion parameters, a quarter of them the embeddings of Qwen2.5's whole vocabulary.
    "cuda": Bench(
        text={"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
              "num_key_value_heads": 4, "vocab_size": 151_936},
        vision={"depth": 16, "hidden_size": 768, "intermediate_size": 2048, "num_heads": 12,
                "fullatt_block_indexes": [3, 7, 11, 15]},
        dtype=torch.bfloat16,
        cases={"image_heavy": Case(1072, 32, 256), "balanced": Case(384, 18, 384), "text_heavy": Case(128, 10, 512)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What the contenders train, and how: a model of its own for each, and `batch` of the trainers' settings."""

    make_model: Callable[[], PreTrainedModel]
    processor: ProcessorMixin
    prompts: datasets.Dataset
    response: int
    batch: dict[str, int]


def random_workload(bench: Bench, case: Case, group: int, num_steps: int, seed: int) -> Workload:
    """One group a step, of a random model."""
    processor = AutoProcessor.from_pretrained(toy.checkpoint_path())
    processor.image_processor.size["longest_edge"] = (case.side * CELL) ** 2
    prompts = random_prompts(case, num_steps, seed)
    found = mean_lengths(prompts, processor)
    assert found == (case.prompt, case.side**2), f"prompts have {found} tokens (all, visual), expected {case}"
    return Workload(
        make_model=lambda: random_model(bench, processor.tokenizer, seed),
        processor=processor,
        prompts=prompts,
        response=case.response,
        batch={"num_generations": group, "per_device_train_batch_size": group, "gradient_accumulation_steps": 1},
    )


def embedded_workload(folder: Path, seed: int) -> Workload:
    """The quickstart's model and task: 8 groups of 8 rollouts a step."""
    train, _ = toy.write_datasets(folder, num_train=512, num_test=8, seed=seed)
    path = toy.checkpoint_path()
    return Workload(
        make_model=lambda: AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32),
        processor=AutoProcessor.from_pretrained(path),
        prompts=to_prompts(load_dataset(str(train))),
        response=32,
        batch={"num_generations": 8, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 2},
    )


def random_model(bench: Bench, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Qwen2.5-VL of the bench's sizes with the embedded model's tokens; the same seed gives the same weights."""
    token_id = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    eighth = bench.text["hidden_size"] // bench.text["num_attention_heads"] // 8
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [eighth, 3 * eighth // 2, 3 * eighth // 2]}
    config = Qwen2_5_VLConfig(
        text_config={**bench.text, **ends, "bos_token_id": None, "rope_parameters": rotary},
        vision_config={**bench.vision, "out_hidden_size": bench.text["hidden_size"], "patch_size": CELL // 2},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).to(bench.dtype)
    model.generation_config = GenerationConfig(**ends)
    return model


def random_prompts(case: Case, num_rows: int, seed: int) -> datasets.Dataset:
    """Rows whose prompts have the case's tokens: a picture each, and one word again and again."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (num_rows, case.side, case.side, 3), generator=generator, dtype=torch.uint8).numpy()
    edge = case.side * CELL
    pictures = [Image.fromarray(cells).resize((edge, edge), Image.Resampling.NEAREST) for cells in colours]
    num_words = case.prompt - case.side**2 - TEMPLATE_TOKENS
    rows = {
        "images": [[picture] for picture in pictures],
        "problem": [" ".join(["picture"] * num_words)] * num_rows,
        "answer": [""] * num_rows,
    }
    return to_prompts(datasets.Dataset.from_dict(rows))


def mean_lengths(prompts: datasets.Dataset, processor: ProcessorMixin) -> tuple[float, float]:
    """Tokens of a prompt and visual tokens among them, the mean of the first rows."""
    totals, visual = [], []
    for row in prompts.select(range(min(64, len(prompts)))):
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
        ids = processor(text=[text], images=row["images"])["input_ids"][0]
        totals.append(len(ids))
        visual.append(ids.count(processor.image_token_id))
    return statistics.mean(totals), statistics.mean(visual)


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
    model = work.make_model()
    config = config_class(
        output_dir=str(folder / name), report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        max_steps=num_steps, learning_rate=0.0, seed=seed, loss_type="dapo", use_cpu=device == "cpu",
        bf16=device == "cuda", max_completion_length=work.response, gradient_checkpointing=False,
        dataloader_pin_memory=False,
        generation_kwargs={"min_new_tokens": work.response, "suppress_tokens": banned_token_ids(model.config)},
        **work.batch, **settings,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=checksum, args=config, train_dataset=work.prompts, processing_class=work.processor
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
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
    group, response = work.batch["num_generations"], work.response
    prompt, visual = mean_lengths(work.prompts, work.processor)
    seconds = {name: contender.seconds for name, contender in contenders.items()}
    pairs = {
        key: zip(seconds[mine][phase], seconds[rival][phase], strict=True)
        for key, (phase, mine, rival) in RATIOS.items()
    }
    return {
        "group": group,
        "prompt": prompt,
        "visual": visual,
        "response": response,
        "rollouts": work.batch["per_device_train_batch_size"] * work.batch["gradient_accumulation_steps"],
        "floor": (prompt + group * response) / (group * (prompt + response)),
        "memory_ratio": contenders["VGPO"].peak_bytes / contenders["GRPO"].peak_bytes,
        "ratios": {key: quartiles([a / b for a, b in values]) for key, values in pairs.items()},
        "seconds": {
            name: {phase: statistics.median(values) for phase, values in phases.items()}
            for name, phases in seconds.items()
        },
        "peak_bytes": {name: contender.peak_bytes for name, contender in contenders.items()},
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"low": low, "median": median, "high": high}


def measure_all(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    runs = [(case, group) for case in arguments.cases if case != EMBEDDED for group in arguments.groups]
    runs += [(EMBEDDED, HEADLINE)] if EMBEDDED in arguments.cases else []
    with tempfile.TemporaryDirectory() as folder:
        for case, group in runs:
            with console.status(f"{case}, {group} rollouts a group ({len(results) + 1} of {len(runs)})"):
                work = workload(case, group, arguments, Path(folder))
                results.append({"case": case, **measure(work, arguments.steps, arguments.seed, arguments.device)})
                gc.collect()  # trainers hold themselves in cycles
    return results


def workload(case: str, group: int, arguments: argparse.Namespace, folder: Path) -> Workload:
    if case == EMBEDDED:
        return embedded_workload(folder, arguments.seed)
    bench = BENCHES[arguments.device]
    return random_workload(bench, bench.cases[case], group, total_steps(arguments.steps), arguments.seed)


def report(record: dict[str, Any], console: Console) -> None:
    environment = record["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "trl", "transformers"))
    commit = f"{environment['commit'] or 'none'}{' with changes' if environment['dirty'] else ''}"
    console.print(
        f"{record['machine']}; Python {environment['python']}, {versions}; seed {environment['seed']}; "
        f"commit {commit}; {record['steps']} steps of each trainer",
        highlight=False,
    )
    columns = ("G", "P", "V", "T", "floor", "update", "reached", "generation", "step", "memory", "off")
    table = Table("case", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in record["results"]:
        medians = {name: ratio["median"] for name, ratio in row["ratios"].items()}
        saved = (1 - medians["time_ratio"]) / (1 - row["floor"])
        sizes = [f"{row[name]:.0f}" for name in ("group", "prompt", "visual", "response")]
        names = ("generation_ratio", "step_ratio")
        table.add_row(
            row["case"], *sizes, f"{row['floor']:.3f}", f"{medians['time_ratio']:.3f}", f"{saved:.0%}",
            *(f"{medians[name]:.3f}" for name in names), f"{row['memory_ratio']:.3f}", f"{medians['off_ratio']:.3f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "P prompt, V visual, T response tokens; G rollouts a group; update: VGPO / GRPO without generation; reached: "
        "share of the saving that the floor leaves; off: update of VGPO / VGPO without sharing.",
        highlight=False,
    )


def headline(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each case its ratios at `HEADLINE` rollouts a group."""
    names = ("time_ratio", "memory_ratio", "floor", "generation_ratio", "off_ratio")
    lines = {}
    for row in results:
        values = {**row, **{name: ratio["median"] for name, ratio in row["ratios"].items()}}
        if row["group"] == HEADLINE:
            lines[row["case"]] = {name: round(values[name], 4) for name in names}
    return lines


def main() -> None:
    cases = [*BENCHES["cpu"].cases, EMBEDDED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8, 16], help="rollouts of a prompt")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each trainer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=BENCHES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file for the medians and their spread")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)  # names inside TRL
    console = Console(width=110)
    on_gpu = arguments.device == "cuda"
    record = {
        "environment": describe_environment(arguments.seed, sys.argv),
        "machine": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "steps": arguments.steps,
        "results": measure_all(arguments, console),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    report(record, console)
    print(json.dumps(headline(record["results"])))


if __name__ == "__main__":
    main()
