"""Ways to attend over a prompt and the responses to it, side by side: forward and backward of one layer.

`separate` is what a trainer without shared prompts runs: every response with a prompt of its own. The others have the
prompt once: `dense` under a mask of all tokens by all tokens, `expanded` with the prompt's keys and values repeated
for each response, `blocks` and `flex` as `vgpo.shared_prompt` does on a CPU and on a GPU.

python benchmarks/attention.py [--rounds 15] [--seed 0]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from vgpo.shared_prompt.attention import BlockAttention, PromptLayout

# prompt tokens, response tokens, responses
CASES = {
    "cpu": {"image_heavy": (300, 75, 8), "balanced": (100, 100, 8), "text_heavy": (48, 192, 8)},
    "cuda": {"image_heavy": (1072, 256, 8), "balanced": (384, 384, 8), "text_heavy": (128, 512, 8)},
}
HEADS, HEAD_SIZE = 8, 64

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
        compiled = torch.compile(flex_attention)
        shared["flex"] = lambda query, key, value: compiled(query, key, value, block_mask=layout.block_mask)
    return {"separate": (group, prompt + response, separate)} | {
        name: (1, length, way) for name, way in shared.items()
    }


def seconds_of(way: Way, heads: list[Tensor]) -> float:
    """Forward and backward once."""
    if heads[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(way(*heads).sum(), heads)
    if heads[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    contenders = {}
    for name, (rows, tokens, way) in ways(*shape, device).items():
        size = (rows, HEADS, tokens, HEAD_SIZE)
        contenders[name] = way, [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 2):
        for name, (way, heads) in contenders.items():
            seconds[name].append(seconds_of(way, heads))
    return {name: values[2:] for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console = Console()
    console.print(f"{name}; Python {platform.python_version()}, torch {torch.__version__}; seed {arguments.seed}")
    ratios: dict[str, dict[str, float]] = {}
    table = Table("case", "P", "T", "G", box=None, pad_edge=False)
    for case, shape in CASES[device.type].items():
        seconds = measure(shape, arguments.rounds, device)
        base = seconds["separate"]
        ratios[case] = {
            way: round(statistics.median(a / b for a, b in zip(values, base, strict=True)), 3)
            for way, values in seconds.items()
        }
        if len(table.columns) == 4:
            for way in seconds:
                table.add_column(way, justify="right", no_wrap=True)
        cells = [f"{statistics.median(v) * 1e3:.1f} ms {ratios[case][way]:.2f}" for way, v in seconds.items()]
        table.add_row(case, *map(str, shape), *cells)
    console.print(table)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
