"""Ways to attend over a prompt and the responses to it, side by side: forward and backward of one layer.

`separate` is what a trainer without shared prompts runs: every response with a prompt of its own. The others have the
prompt once: `dense` under a mask of all tokens by all tokens, `expanded` with the prompt's keys and values repeated
for each response, `blocks` and `flex` as `vgpo.shared_prompt` does on a CPU and on a GPU.

    python benchmarks/attention.py [--device cuda] [--rounds 15] [--seed 0] [--json FILE]

The ways take turns, round by round; a ratio is the median over the rounds. The last line is JSON: ratios to
`separate`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vgpo.shared_prompt.attention import BlockAttention, PromptLayout, attend_end_to_end

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the file may be run as a script
from benchmarks import record

Shape = tuple[int, int, int]  # prompt tokens, response tokens, responses
CASES: dict[str, dict[str, Shape]] = {
    "cpu": {"image_heavy": (300, 75, 8), "balanced": (100, 100, 8), "text_heavy": (48, 192, 8)},
    "cuda": {"image_heavy": (1072, 256, 8), "balanced": (384, 384, 8), "text_heavy": (128, 512, 8)},
}
TINY: Shape = (24, 5, 2)
HEADS, HEAD_SIZE = 8, 64
WARM_UP = 2  # rounds that are not counted: kernels are compiled in the first

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(prompt: int, response: int, group: int, device: torch.device) -> dict[str, tuple[int, int, Way]]:
    """By name: rows, tokens of a row, and the attention over (rows, heads, tokens, size)."""
    length = prompt + group * response
    layout = PromptLayout((prompt,), ((response,) * group,), length, device)
    scale = HEAD_SIZE**-0.5
    owner = torch.repeat_interleave(torch.tensor([prompt, *[response] * group], device=device))
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = causal & ((owner == 0) | (owner == owner[:, None]))
    tail = mask[prompt : prompt + response, : prompt + response]

    def separate(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def expanded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def prompts_and_responses(heads: Tensor) -> tuple[Tensor, Tensor]:
            head, rest = heads.split([prompt, group * response], dim=2)
            return head, rest.unflatten(2, (group, response)).squeeze(0).transpose(0, 1)

        parts = [prompts_and_responses(heads) for heads in (query, key, value)]
        first = F.scaled_dot_product_attention(*(head for head, _ in parts), is_causal=True)
        keys, values = (torch.cat([head.expand(group, -1, -1, -1), own], dim=2) for head, own in parts[1:])
        then = F.scaled_dot_product_attention(parts[0][1], keys, values, attn_mask=tail)
        return torch.cat([first, then.transpose(0, 1).flatten(1, 2).unsqueeze(0)], dim=2)

    def blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return BlockAttention.apply(query, key, value, layout, scale)

    shared = {"dense": dense, "expanded": expanded}
    if device.type == "cpu":
        shared["blocks"] = blocks
    else:
        shared["flex"] = lambda query, key, value: attend_end_to_end(query, key, value, layout, scale)
    return {"separate": (group, prompt + response, separate)} | {
        name: (1, length, way) for name, way in shared.items()
    }


def seconds_of(way: Way, heads: list[Tensor]) -> float:
    """Forward and backward once."""

    def run() -> None:
        out = way(*heads)
        torch.autograd.grad(out, heads, out.detach())

    return record.seconds_of(run, heads[0].device)


def measure(shape: Shape, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    contenders = {}
    for name, (rows, tokens, way) in ways(*shape, device).items():
        size = (rows, HEADS, tokens, HEAD_SIZE)
        contenders[name] = way, [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(WARM_UP + rounds):
        for name, (way, heads) in contenders.items():
            seconds[name].append(seconds_of(way, heads))
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def ratios_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Of each way to separate rows."""
    base = seconds["separate"]
    return {
        way: round(statistics.median(a / b for a, b in zip(values, base, strict=True)), 3)
        for way, values in seconds.items()
    }


def result_table(cases: dict[str, Shape], seconds: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("case", "P", "T", "G", box=None, pad_edge=False)
    for way in next(iter(seconds.values())):
        table.add_column(way, justify="right", no_wrap=True)
    for case, shape in cases.items():
        ratios = ratios_of(seconds[case])
        cells = [f"{statistics.median(v) * 1e3:.2f} ms {ratios[way]:.2f}" for way, v in seconds[case].items()]
        table.add_row(case, *map(str, shape), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    environment = record.environment(arguments.seed, arguments.device)
    torch.manual_seed(arguments.seed)
    cases = CASES[arguments.device]
    if arguments.tiny:
        cases = dict.fromkeys(cases, TINY)
    device = torch.device(arguments.device)
    seconds = {case: measure(shape, arguments.rounds, device) for case, shape in cases.items()}
    record.write(arguments.json, environment, cases=cases, seconds=seconds)
    console = Console(width=119)
    console.print(record.describe(environment), highlight=False)
    console.print(result_table(cases, seconds))
    record.print_line({case: ratios_of(values) for case, values in seconds.items()}, environment)


if __name__ == "__main__":
    main()
