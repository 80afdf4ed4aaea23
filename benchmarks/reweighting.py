"""Compare the speed of the reweighting with plain loops and with one read of the response's hidden states.

    python benchmarks/reweighting.py [--device cpu] [--threads 2] [--repeats 7] [--seed 0] [--json FILE]

Prints a table, then one line of JSON: how many times faster than the loops, and how many times the time of a single
read. The loops are the reference implementation of the tests, so the results are also compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vgpo import ReweightedAdvantages, VGPOSettings, reweight_advantages, visual_prototype, visual_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import record

from tests.equations import naive


@dataclass(frozen=True)
class Sizes:
    """B rollouts in groups of G, of T tokens; V visual and `text` other tokens of a prompt; D the hidden size."""

    B: int = 32
    G: int = 8
    T: int = 1024
    V: int = 512
    D: int = 2048
    text: int = 64


TINY = Sizes(B=4, G=2, T=12, V=9, D=16, text=8)
# Goals per device: many times faster than the loops, and a few times as long as a single read.
GOALS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"vs_loops": "at least 300", "vs_read": "at most 2"}}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    environment = record.environment(arguments.seed, arguments.device)
    device = torch.device(arguments.device)
    sizes = TINY if arguments.tiny else Sizes()
    batch = make_batch(sizes, device, arguments.seed)
    with torch.inference_mode():
        difference = largest_difference(vectorised(batch), in_loops(batch))
        if difference > 1e-3:
            sys.exit(f"The token factors differ from the loops' by {difference:.1e}: nothing was timed.")
        seconds = measure(batch, device, arguments.repeats)
    ratios = {
        "vs_loops": round(seconds["loops"] / seconds["vectorised"], 1),
        "vs_read": round(seconds["vectorised"] / seconds["read"], 2),
    }
    record.write(
        arguments.json, environment, sizes=asdict(sizes), seconds=seconds, difference=difference, ratios=ratios
    )
    console = Console(width=119)
    console.print(f"{record.describe(environment)}; {arguments.repeats} rounds", highlight=False)
    console.print(f"{sizes}, float32; largest difference of a token factor {difference:.1e}", highlight=False)
    console.print(result_table(seconds, ratios, GOALS[arguments.device]))
    record.print_line(ratios, environment)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are reported")
    return parser.parse_args()


def make_batch(sizes: Sizes, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Random float32 hidden states of whole sequences; the prompt and the response are views of them."""
    B, T, V = sizes.B, sizes.T, sizes.V
    generator = torch.Generator(device).manual_seed(seed)
    num_prompt = sizes.text + V
    hidden = torch.randn(B, num_prompt + T, sizes.D, device=device, generator=generator)
    lengths = torch.randint(T // 4, T + 1, (B, 1), device=device, generator=generator)
    visual_mask = torch.zeros(B, num_prompt, dtype=torch.bool, device=device)
    visual_mask[:, sizes.text // 2 : sizes.text // 2 + V] = True
    return {
        "prompt_hidden": hidden[:, :num_prompt],
        "response_hidden": hidden[:, num_prompt:],
        "visual_mask": visual_mask,
        "response_mask": torch.arange(T, device=device) < lengths,
        "group_ids": torch.arange(B, device=device) // sizes.G,
        "advantages": torch.randn(B, device=device, generator=generator),
    }


def vectorised(batch: dict[str, Tensor]) -> ReweightedAdvantages:
    prototype = visual_prototype(batch["prompt_hidden"], batch["visual_mask"])
    similarity = visual_similarity(batch["response_hidden"], prototype)
    return reweight_advantages(
        batch["advantages"], similarity, batch["response_mask"], batch["group_ids"], VGPOSettings()
    )


def in_loops(batch: dict[str, Tensor]) -> ReweightedAdvantages:
    prototype = naive.visual_prototype(batch["prompt_hidden"], batch["visual_mask"])
    similarity = naive.visual_similarity(batch["response_hidden"], prototype)
    return naive.reweight_advantages(
        batch["advantages"], similarity, batch["response_mask"], batch["group_ids"], VGPOSettings()
    )


def largest_difference(found: ReweightedAdvantages, expected: ReweightedAdvantages) -> float:
    return (found.token_factor.cpu() - expected.token_factor).abs().max().item()


def measure(batch: dict[str, Tensor], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, round after round, in one process."""
    timed: dict[str, Callable[[], object]] = {
        "loops": lambda: in_loops(batch),
        "read": lambda: batch["response_hidden"].sum(),
        "vectorised": lambda: vectorised(batch),
    }
    # The loops take a hundred times longer, and are steady: a few rounds of them are enough.
    calls = {"loops": 1, "read": 10, "vectorised": 10}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, function in timed.items():
            function()
            seconds[name] += [record.seconds_of(function, device) for _ in range(calls[name])]
    return {name: median(values) for name, values in seconds.items()}


def result_table(seconds: dict[str, float], ratios: dict[str, float], goals: dict[str, str]) -> Table:
    table = Table("", "ms", "ratio", "goal", box=None, pad_edge=False)
    for name, value in seconds.items():
        table.add_row(name, f"{value * 1e3:.2f}")
    for name, value in ratios.items():
        table.add_row(name, "", f"{value}", goals.get(name, ""))
    for column in table.columns[1:3]:
        column.justify = "right"
    return table


if __name__ == "__main__":
    main()
