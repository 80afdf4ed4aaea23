"""Time of a rollout's token by the rows that one call of `generate` samples: `VGPOTrainer` beside TRL's `GRPOTrainer`.

Decoding reads all weights for every new token of every row at once, so that more rows make a token cheaper. Both
trainers generate as in training, from the same weights and random numbers, and take turns; responses have a fixed
length. The time is that of `_generate_single_turn`: neither images nor rewards.

    python benchmarks/generation.py [--cases image_heavy ...] [--rows 8 16 32 64 128] [--rounds 3] [--json FILE]

`--cpu-time` counts CPU seconds of one thread, for a machine that is not idle. The last line is JSON: by case, VGPO's
milliseconds for a token and their ratio to GRPO's, by rows.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import contest, models, record
from benchmarks.turns import WARM_UP, Contender

GROUP = 8
ROWS = (8, 16, 32, 64, 128)


def measure(
    plan: contest.Plan, case: models.Case, rows: Sequence[int], progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row of the results for each number of rows: milliseconds for a token, and their ratio round by round."""
    work = contest.random_workload(plan, case, GROUP, num_prompts=max(rows) // GROUP)
    with tempfile.TemporaryDirectory() as folder:
        contenders = [
            contest.make_contender(kind, contest.Entrant(kind, GROUP), work, plan, Path(folder))
            for kind in contest.CLASSES
        ]
        results = []
        for number in rows:
            progress(f"{number} rows")
            for round_number in range(WARM_UP + plan.steps):
                for contender in contenders:
                    generate(contender, work, number, seed=plan.seed + round_number)
            results.append({"rows": number, **figures_of(contenders, number * case.response)})
    return results


def generate(contender: Contender, work: contest.Workload, rows: int, seed: int) -> None:
    """One more round: the first prompts, each for a complete group."""
    read = list(work.prompts.select(range(rows // work.group)))  # once: a group has the very same images
    inputs = [row for row in read for _ in range(work.group)]
    contender.trainer.model.train()
    torch.manual_seed(seed)
    contender.start_round()
    contender.trainer._generate_and_score_completions(inputs)
    contender.end_round()


def figures_of(contenders: Sequence[Contender], tokens: int) -> dict[str, Any]:
    """Of the rounds since the last call."""
    milliseconds, images = {}, {}
    for contender in contenders:
        counted = contender.rounds[WARM_UP:]
        milliseconds[contender.name] = [1e3 * seconds["generation"] / tokens for seconds in counted]
        images[contender.name] = contender.images[-1]
        contender.rounds.clear()
    pairs = zip(milliseconds["VGPO"], milliseconds["GRPO"], strict=True)
    return {
        "milliseconds": {name: record.quartiles(values) for name, values in milliseconds.items()},
        "ratio": record.quartiles([mine / rival for mine, rival in pairs]),
        "images": images,
    }


def result_table(results: Sequence[dict[str, Any]]) -> Table:
    """Milliseconds for a token, beside GRPO's, and beside those of the fewest rows."""
    table = record.numbers_table(
        "case", "P", "T", "rows", "VGPO, ms", "GRPO, ms", "VGPO / GRPO", "VGPO / fewest", "GRPO / fewest"
    )
    first: dict[str, dict[str, float]] = {}
    for row in results:
        found = {name: value["median"] for name, value in row["milliseconds"].items()}
        fewest = first.setdefault(row["case"], found)
        table.add_row(
            row["case"], str(row["prompt"]), str(row["response"]), str(row["rows"]),
            f"{found['VGPO']:.3f}", f"{found['GRPO']:.3f}", f"{row['ratio']['median']:.3f}",
            *(f"{found[name] / fewest[name]:.2f}" for name in ("VGPO", "GRPO")),
        )  # fmt: skip
    return table


def headline(results: Sequence[dict[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """By case and rows: VGPO's milliseconds for a token, and VGPO / GRPO."""
    lines: dict[str, dict[int, list[float]]] = {}
    for row in results:
        figures = [row["milliseconds"]["VGPO"]["median"], row["ratio"]["median"]]
        lines.setdefault(row["case"], {})[row["rows"]] = [round(figure, 4) for figure in figures]
    return lines


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help=f"multiples of {GROUP}")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each trainer")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread")
    arguments = parser.parse_args()
    contest.check_cpu_time(parser, arguments)
    cases = models.BENCHES[arguments.device].cases
    arguments.cases = arguments.cases or list(cases)
    if unknown := sorted(set(arguments.cases) - set(cases)):
        parser.error(f"--cases {' '.join(unknown)}: expected some of {', '.join(cases)}")
    if bad := [rows for rows in arguments.rows if rows < 1 or rows % GROUP]:
        parser.error(f"--rows {bad[0]}: expected multiples of the {GROUP} rollouts of a group")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    contest.quieten()
    if arguments.cpu_time:
        torch.set_num_threads(1)
    bench = models.BENCHES[arguments.device]
    bench = models.tiny(bench) if arguments.tiny else bench
    plan = contest.Plan(
        bench, (), arguments.rounds, arguments.seed, arguments.device, cpu_time=arguments.cpu_time
    )  # fmt: skip
    console = Console(width=119)
    environment = record.environment(plan.seed, plan.device)
    results: list[dict[str, Any]] = []
    for name in arguments.cases:
        case = bench.cases[name]
        with console.status(name, refresh_per_second=1) as status:
            rows = measure(plan, case, arguments.rows, lambda text: status.update(f"{name}: {text}"))  # noqa: B023
        results += [{"case": name, "prompt": case.prompt, "response": case.response, **row} for row in rows]
        contest.free_memory(plan.device)
        record.write(
            arguments.json, environment, rounds=plan.steps, group=GROUP, cpu_time=plan.cpu_time, results=results
        )
    console.print(f"{record.describe(environment)}; {plan}", highlight=False)
    console.print(result_table(results))
    console.print(
        f"Milliseconds for a rollout's token by the rows of a call, {GROUP} of each prompt. P prompt, T response "
        "tokens; fewest: the same trainer with the fewest rows.",
        highlight=False,
    )
    record.print_line(headline(results), environment)


if __name__ == "__main__":
    main()
