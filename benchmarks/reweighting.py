"""Time the reweighting beside plain loops and beside one reading of the response's hidden states.

    python benchmarks/reweighting.py [--device cpu] [--threads 2] [--repeats 7] [--seed 0]

Prints a table, then one line of JSON: how many times faster than the loops, and how many times the time of
the mere reading. The loops are those that the tests take for the truth, so the two are also compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from vgpo import ReweightedAdvantages, VGPOSettings, reweight_advantages, visual_prototype, visual_similarity
from vgpo.report.environment import cpu_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "equations"))
import naive  # noqa: E402

B, G, T, V, D = 32, 8, 1024, 512, 2048
NUM_TEXT = 64  # prompt tokens that are not visual


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    batch = make_batch(device, arguments.seed)
    with torch.inference_mode():
        difference = largest_difference(vectorised(batch), in_loops(batch))
        if difference > 1e-3:
            sys.exit(f"The token factors differ from the loops' by {difference:.1e}: nothing was timed.")
        seconds = measure(batch, device, arguments.repeats)
    report(seconds, difference, device, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_batch(device: torch.device, seed: int) -> dict[str, Tensor]:
    """Random float32 hidden states of whole sequences; the prompt and the response are views of them."""
    generator = torch.Generator(device).manual_seed(seed)
    num_prompt = NUM_TEXT + V
    hidden = torch.randn(B, num_prompt + T, D, device=device, generator=generator)
    lengths = torch.randint(T // 4, T + 1, (B, 1), device=device, generator=generator)
    visual_mask = torch.zeros(B, num_prompt, dtype=torch.bool, device=device)
    visual_mask[:, NUM_TEXT // 2 : NUM_TEXT // 2 + V] = True
    return {
        "prompt_hidden": hidden[:, :num_prompt],
        "response_hidden": hidden[:, num_prompt:],
        "visual_mask": visual_mask,
        "response_mask": torch.arange(T, device=device) < lengths,
        "group_ids": torch.arange(B, device=device) // G,
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
            seconds[name] += [seconds_of(function, device) for _ in range(calls[name])]
    return {name: median(values) for name, values in seconds.items()}


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_event.record()
    function()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / 1000


def report(seconds: dict[str, float], difference: float, device: torch.device, arguments: argparse.Namespace) -> None:
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit or 'none'}")
    print(
        f"B={B} T={T} V={V} D={D} float32, seed {arguments.seed}, {arguments.repeats} rounds; "
        f"largest difference of a token factor {difference:.1e}"
    )
    for name, value in seconds.items():
        print(f"{name:12s}{value * 1e3:12.2f} ms")
    ratios = {
        "vs_loops": round(seconds["loops"] / seconds["vectorised"], 1),
        "vs_read": round(seconds["vectorised"] / seconds["read"], 2),
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
