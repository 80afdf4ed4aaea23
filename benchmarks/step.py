"""Compare complete optimizer steps of `VGPOTrainer` with those of TRL's `GRPOTrainer`.

All train the same weights on the same prompts with the same random numbers in one process, and take turns
(`benchmarks/turns.py`). Rollouts have a fixed length and the learning rate is 0: every round does the same work. Of
each case and group size the table shows ratios, each the median over the rounds: `update` is a step without its
generation, `off` is VGPO beside VGPO that shares no prompt. The floor is the share of tokens that is left when a
group's prompt is computed once, (P + G T) / (G (P + T)); as only 1 / G of the image's patches are left, a step with a
large vision tower can be below it.

    python benchmarks/step.py [--cases image_heavy ...] [--groups 8 ...] [--steps 5] [--device cpu] [--json FILE]

`--micro-batches 8 4 2 1` measures VGPO at each of these micro-batches, in rows; gradients accumulate, so that a step
always has the same rollouts. They are compared with GRPO at the largest one, which is 1 in every ratio, and GRPO runs
at a micro-batch of 1 as well, if that is among them.

`--frozen` freezes vision tower and projector; VGPO keeps the tower's outputs, and is compared with VGPO that does not.
`--updates-per-generation 4` makes four optimizer steps with each generation, of which figures are the mean.

`--growth` measures how time and memory grow with group size, text, response and image (`benchmarks/growth.py`).

`--cpu-time` counts CPU seconds of one thread, for a machine that is not idle. `benchmarks/generation.py` measures
generation by its rows.

`--model` measures a model of real size with random weights in bf16, with gradient checkpointing: prompts of 1,200
tokens, of which 1,024 are visual, and responses of 500, drawn at random instead of generated. The optimizer is SGD,
which keeps no state; AdamW's step would add the same time to all.

The last line is JSON: the ratios at 8 rollouts per group. `benchmarks/chart.py` draws FILE, which is written after
each case.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import contest, growth, models, record
from benchmarks.contest import HEADLINE, Entrant, Plan, Workload
from benchmarks.turns import PHASES, Contender

GIB = 2**30
HEADLINE_RATIOS = (
    "time_ratio", "memory_ratio", "floor", "generation_ratio", "off_ratio", "own_ratio", "single_memory_ratio",
    "tower_ratio",
)  # fmt: skip


def measure(
    work: Workload, plan: Plan, entrants: dict[str, Entrant], progress: Callable[[str], None] = contest.no_progress
) -> list[dict[str, Any]]:
    """Rows of the results, one for each micro-batch: sizes, ratios with their quartiles, and what they come from."""
    contenders = contest.compare(work, plan, entrants, progress)
    if plan.frozen:
        check_tower(contenders, work.micro_batches[0])
    prompt, visual = models.mean_lengths(work.prompts, work.processor)
    sizes = {
        "group": work.group,
        "prompt": prompt,
        "visual": visual,
        "response": work.response,
        "rollouts": work.rollouts,
        "updates": plan.updates,
        "frozen": plan.frozen,
        "floor": (prompt + work.group * work.response) / (work.group * (prompt + work.response)),
        "weight_bytes": sum(p.numel() * p.element_size() for p in work.model.parameters()),
        "largest": work.micro_batches[0],
    }
    return [{**sizes, **figures_at(size, work, contenders)} for size in work.micro_batches]


def check_tower(contenders: dict[str, Contender], size: int) -> None:
    """What is measured is there: kept outputs spare runs of the tower.

    Raises:
        RuntimeError: They spare none.
    """
    kept, each = (contenders[f"{name}@{size}"].images[-1] for name in ("VGPO", "VGPO tower"))
    if kept >= each:
        raise RuntimeError(
            f"The vision tower encoded {kept} images a round where its outputs are kept, and {each} where they are "
            "not, expected fewer: either VGPO keeps none here, or run_tower_each_time has no effect."
        )


def figures_at(size: int, work: Workload, contenders: dict[str, Contender]) -> dict[str, Any]:
    """What was measured at a micro-batch of `size` rows, and its ratios."""
    largest = work.micro_batches[0]
    here = {name.partition("@")[0]: one for name, one in contenders.items() if name.endswith(f"@{size}")}
    mine, rival = here["VGPO"], contenders[f"GRPO@{largest}"]
    row = {
        "micro_batch": size,
        "ratios": ratios_at(size, work, contenders),
        "memory_ratio": mine.peak_bytes / rival.peak_bytes,
    }
    if size != largest and "GRPO" in here:
        row["single_memory_ratio"] = mine.peak_bytes / here["GRPO"].peak_bytes
        row["rival_memory_ratio"] = here["GRPO"].peak_bytes / rival.peak_bytes
    return row | {
        "seconds": {
            name: {phase: statistics.median(values) for phase, values in one.seconds.items()}
            for name, one in here.items()
        },
        "peak_bytes": {name: one.peak_bytes for name, one in here.items()},
        "images": {name: one.images[-1] for name, one in here.items()},
    }


def ratios_at(size: int, work: Workload, contenders: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """Ratios of a phase's seconds, with their quartiles over the rounds, wherever both trainers ran."""
    largest = work.micro_batches[0]
    mine, rival = f"VGPO@{size}", f"GRPO@{largest}"
    pairs = {
        "time_ratio": ("update", mine, rival),
        "gradient_ratio": ("gradient", mine, rival),
        "generation_ratio": ("generation", mine, rival),
        "step_ratio": ("step", mine, rival),
        "own_ratio": ("update", mine, f"VGPO@{largest}"),
        "rival_ratio": ("update", f"GRPO@{size}", rival),
        "off_ratio": ("update", mine, f"VGPO off@{size}"),
        "tower_ratio": ("step", mine, f"VGPO tower@{size}"),
    }
    seconds = {name: contender.seconds for name, contender in contenders.items()}
    return {
        key: record.quartiles([a / b for a, b in zip(seconds[one][phase], seconds[other][phase], strict=True)])
        for key, (phase, one, other) in pairs.items()
        if one != other and {one, other} <= seconds.keys() and (work.generates or phase != "generation")
    }


def measure_all(plan: Plan, console: Console) -> Iterator[dict[str, Any]]:
    """The rows of the results, one by one."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (case, group) in enumerate(plan.runs, 1):
            title = f"{case}, {group} rollouts per group ({number} of {len(plan.runs)})"
            with console.status(title, refresh_per_second=1) as status:
                work = contest.workload(plan, case, group, Path(folder))
                entrants = contest.lineup(work.micro_batches, frozen=plan.frozen)
                rows = measure(work, plan, entrants, lambda text: status.update(f"{title}: {text}"))  # noqa: B023
            del work
            contest.free_memory(plan.device)
            yield from ({"case": case, **row} for row in rows)


def report(results: Sequence[dict[str, Any]], plan: Plan, environment: dict[str, Any], console: Console) -> None:
    console.print(f"{record.describe(environment)}; {plan}", highlight=False)
    console.print(ratio_table(results, frozen=plan.frozen))
    console.print(
        "P prompt, V visual, T response tokens; G rollouts per group; rows: of a micro-batch. VGPO / GRPO at the "
        "largest micro-batch: update (a step without generation), generation, step, memory (peak of what a round "
        "allocates). own: update of VGPO / VGPO at the largest micro-batch; mem. at 1: VGPO / GRPO, both at 1; off: "
        "update of VGPO / VGPO without sharing; tower: step of VGPO / VGPO that runs the frozen tower each time; "
        "s, GiB: update and memory of VGPO.\n",
        highlight=False,
    )
    console.print(phase_table(results))
    console.print(
        "Seconds of an optimizer step, medians. scoring: passes without gradient over rollouts; gradient: forward and "
        "backward; other: images, rewards, optimizer, reading rows; images: that the vision tower encodes in a round.",
        highlight=False,
    )
    for row in results:
        for name, goal in plan.bench.goals:
            found = row[name] if name in row else row["ratios"][name]["median"]
            console.print(f"{row['case']}, G {row['group']}: {name} {found:.3f}, goal at most {goal}", highlight=False)


def ratio_table(results: Sequence[dict[str, Any]], *, frozen: bool) -> Table:
    """A line for each case, group size and micro-batch."""
    last = "tower" if frozen else "off"
    names = ("time_ratio", "own_ratio", "generation_ratio", "step_ratio", "memory_ratio", "single_memory_ratio")
    heads = ("update", "own", "generation", "step", "memory", "mem. at 1", last)
    table = record.numbers_table("case", "G", "P", "V", "T", "rows", "floor", *heads, "s", "GiB")
    for row in results:
        values = {**row, **{name: ratio["median"] for name, ratio in row["ratios"].items()}}
        sizes = [f"{row[name]:.0f}" for name in ("group", "prompt", "visual", "response", "micro_batch")]
        ratios = [f"{values[name]:.3f}" if name in values else "-" for name in (*names, f"{last}_ratio")]
        costs = f"{row['seconds']['VGPO']['update']:.2f}", f"{row['peak_bytes']['VGPO'] / GIB:.2f}"
        table.add_row(row["case"], *sizes, f"{row['floor']:.3f}", *ratios, *costs)
    return table


def phase_table(results: Sequence[dict[str, Any]]) -> Table:
    """Where a step's time goes: a line for each trainer."""
    table = record.numbers_table("case", "G", "rows", "trainer", *PHASES, "step", "images")
    for row in results:
        for name, seconds in row["seconds"].items():
            cells = [f"{seconds[phase]:.3f}" for phase in (*PHASES, "step")]
            table.add_row(
                row["case"], str(row["group"]), str(row["micro_batch"]), name, *cells, str(row["images"][name])
            )
    return table


def headline(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each case its ratios at `HEADLINE` rollouts per group, by micro-batch where there are several."""
    lines = {}
    for row in results:
        values = {**row, **{name: ratio["median"] for name, ratio in row["ratios"].items()}}
        name = row["case"] if row["micro_batch"] == row["largest"] else f"{row['case']}@{row['micro_batch']}"
        if row["group"] == HEADLINE:
            lines[name] = {name: round(values[name], 4) for name in HEADLINE_RATIOS if name in values}
    return lines


def parse_plan() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser)
    parser.add_argument("--model", choices=models.MODELS, help="a model of real size; by default one of the device's")
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--groups", nargs="+", type=int, help="rollouts of a prompt")
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[], help="rows; by default a complete group")
    parser.add_argument("--attention", help="attn_implementation of all models; transformers' default by default")
    parser.add_argument("--frozen", action="store_true", help="train neither vision tower nor projector")
    parser.add_argument("--updates-per-generation", type=int, default=1, metavar="N", help="optimizer steps")
    parser.add_argument("--steps", type=int, default=5, help="counted rounds of each trainer")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread")
    parser.add_argument("--growth", action="store_true", help="how costs grow with group, text, response and image")
    arguments = parser.parse_args()
    bench = models.MODELS[arguments.model] if arguments.model else models.BENCHES[arguments.device]
    sizes = tuple(sorted(set(arguments.micro_batches), reverse=True))
    contest.check_cpu_time(parser, arguments)
    if arguments.updates_per_generation < 1:
        parser.error(f"--updates-per-generation {arguments.updates_per_generation}: expected 1 or more")
    if arguments.growth and (arguments.model or arguments.cases or arguments.groups or sizes or arguments.frozen):
        parser.error(
            "--growth chooses the cases itself: leave out --model, --cases, --groups, --micro-batches, --frozen"
        )
    runs = runs_of(parser, arguments, bench)
    for case, group in runs:
        rollouts = contest.rollouts_of(case, group)
        if bad := [size for size in sizes if size < 1 or rollouts % size]:
            parser.error(
                f"--micro-batches {bad[0]}: expected divisors of the {rollouts} rollouts that a step of {case} has at "
                f"--groups {group}"
            )
    bench = replace(models.tiny(bench) if arguments.tiny else bench, attention=arguments.attention)
    plan = Plan(
        bench, runs, arguments.steps, arguments.seed, arguments.device, sizes, arguments.frozen,
        arguments.updates_per_generation, arguments.cpu_time,
    )  # fmt: skip
    return plan, arguments


def runs_of(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, bench: models.Bench
) -> tuple[tuple[str, int], ...]:
    """Cases with their group sizes."""
    choices = [*bench.cases, *([] if arguments.model else [models.EMBEDDED])]
    cases = arguments.cases or list(bench.default_cases)
    if unknown := sorted(set(cases) - set(choices)):
        parser.error(f"--cases {' '.join(unknown)}: expected some of {', '.join(choices)}")
    one_size = arguments.micro_batches or arguments.frozen
    groups = arguments.groups or ((HEADLINE,) if one_size else bench.default_groups)
    runs = [(case, group) for case in cases if case != models.EMBEDDED for group in groups]
    runs += [(models.EMBEDDED, HEADLINE)] if models.EMBEDDED in cases else []
    return tuple(runs)


def main() -> None:
    plan, arguments = parse_plan()
    contest.quieten()
    if plan.cpu_time:
        torch.set_num_threads(1)
    console = Console(width=119)
    environment = record.environment(plan.seed, plan.device)
    if arguments.growth:
        measure_growth(plan, arguments, environment, console)
        return
    results: list[dict[str, Any]] = []
    for row in measure_all(plan, console):
        results.append(row)
        time_ratio = row["ratios"]["time_ratio"]["median"]
        console.print(
            f"{row['case']}, G {row['group']}, {row['micro_batch']} rows: update {time_ratio:.3f}, "
            f"memory {row['memory_ratio']:.3f}",
            highlight=False,
        )
        record.write(
            arguments.json, environment, steps=plan.steps, cpu_time=plan.cpu_time, goals=dict(plan.bench.goals),
            results=results,
        )  # fmt: skip
    report(results, plan, environment, console)
    record.print_line(headline(results), environment)


def growth_costs(plan: Plan, point: growth.Point) -> growth.Costs:
    """What a step at a point costs VGPO and GRPO."""
    work = contest.random_workload(plan, point.case, point.group)
    contenders = contest.compare(work, plan, {kind: Entrant(kind, point.group) for kind in contest.CLASSES})
    costs = {kind: growth.costs_of(contender) for kind, contender in contenders.items()}
    del work, contenders
    contest.free_memory(plan.device)
    return costs


def measure_growth(plan: Plan, arguments: argparse.Namespace, environment: dict[str, Any], console: Console) -> None:
    """Measure all points of `growth`, write them, and print the table of slopes."""
    ladders = growth.TINY if arguments.tiny else growth.LADDERS[plan.device]
    costs: dict[growth.Point, growth.Costs] = {}
    points = ladders.points()
    for number, point in enumerate(points, 1):
        with console.status(f"{point} ({number} of {len(points)})", refresh_per_second=1):
            costs[point] = growth_costs(plan, point)
        measured = [{**point.sizes(), "costs": found} for point, found in costs.items()]
        record.write(arguments.json, environment, steps=plan.steps, cpu_time=plan.cpu_time, points=measured)
    slopes = growth.slopes_of(ladders, costs)
    record.write(
        arguments.json, environment, steps=plan.steps, cpu_time=plan.cpu_time, points=measured, growth=slopes
    )  # fmt: skip
    console.print(f"{record.describe(environment)}; {plan}", highlight=False)
    console.print(growth.table(slopes))
    console.print(f"{growth.LEGEND} Middle: {ladders.middle}.", highlight=False)
    record.print_line(growth.headline(slopes), environment)


if __name__ == "__main__":
    main()
