#!/usr/bin/env python3
"""What the runner of benchmarks costs over plain evaluation, and what memory it needs as rows grow; on a CPU.

    python benchmarks/suite_runner.py [--questions 400] [--rounds 3] [--rows 200 2000]

Answers questions of the toy task with `vgpo eval --data` and with `vgpo eval --tasks`, in turns, compares every
response, and prints the ratio of the CPU times of the commands. Then it evaluates sets of two sizes, each in a process
of its own, and prints the ratio of peak memories. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

from rich.console import Console

from vgpo.evaluation.benchmarks import own_task
from vgpo.evaluation.protocols import protocol_named
from vgpo.run.environment import cpu_name
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite
from vgpo.toy import write_datasets

TASK, MAX_NEW_TOKENS, BATCH_SIZE = "embedded", 96, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs=2, default=[200, 2000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_datasets(Path(folder), num_train=1, num_test=max(arguments.questions, *arguments.rows))[1]
        found = {"cpu": cpu_name(), **compare_times(data, arguments.questions, arguments.rounds)}
        found |= compare_memory(data, arguments.rows)
    print(json.dumps(found))


def compare_times(data: Path, num_questions: int, rounds: int) -> dict[str, float | int]:
    """CPU seconds of both commands, in turns; and responses that differ."""
    ratios, costs, different = [], [], 0
    for _ in range(rounds):
        plain, plain_seconds = by_command(data, num_questions, suite=False)
        suite, suite_seconds = by_command(data, num_questions, suite=True)
        different += sum(one != other for one, other in zip(plain, suite, strict=True))
        ratios.append(suite_seconds / plain_seconds)
        costs.append(1000 * (suite_seconds - plain_seconds) / num_questions)
        print(f"plain {plain_seconds:.1f} s, suite {suite_seconds:.1f} s of CPU, ratio {ratios[-1]:.2f}")
    print(f"suite / plain: {median(ratios):.2f} (median of {rounds}); {different} responses differ")
    print(f"suite - plain: {median(costs):.0f} ms for each of {num_questions} questions")
    return {"questions": num_questions, "different": different, "cpu_ratio": round(median(ratios), 3)}


def by_command(data: Path, num_questions: int, *, suite: bool) -> tuple[list[str], float]:
    """Responses by the command `vgpo eval`, and its CPU seconds with those of its own processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        source = ["--tasks", TASK, "--data", f"{TASK}={data}"] if suite else ["--data", str(data)]
        words = [*source, "--limit", str(num_questions), "--template", "plain", "--out", str(out)]
        words += ["--max-new-tokens", str(MAX_NEW_TOKENS), "--batch-size", str(BATCH_SIZE)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "vgpo.cli", "eval", "toy", *words]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if not suite:
            return [answer["completion"] for answer in json.loads(out.read_text())["answers"]], seconds
        graded = EvaluationFolder(out).read_graded(TASK)
        return [answer.completion for answer in sorted(graded, key=lambda answer: answer.row)], seconds


def compare_memory(data: Path, sizes: list[int]) -> dict[str, float | list[int]]:
    """Peak resident memory of an evaluation of each size, in a process of its own."""
    peaks = []
    for size in sizes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(peak_of_suite, data, size).result())
        print(f"{size} rows: {peaks[-1]} MB")
    print(f"{sizes[1]} rows / {sizes[0]} rows: {peaks[1] / peaks[0]:.3f}")
    return {"rows": sizes, "peak_mb": peaks, "memory_ratio": round(peaks[1] / peaks[0], 3)}


def peak_of_suite(data: Path, size: int) -> int:
    """Peak resident memory, in MB, of an evaluation of the first `size` rows."""
    with tempfile.TemporaryDirectory() as folder:
        request = SuiteRequest(
            checkpoint="toy",
            benchmarks=[own_task(TASK)],
            data={TASK: str(data)},
            protocol=protocol_named("papo-greedy"),
            out=Path(folder) / "evaluation",
            template="plain",
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=BATCH_SIZE,
            limit=size,
        )
        evaluate_suite(request, Console(quiet=True))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
