#!/usr/bin/env python3
"""What the runner of benchmarks costs over plain evaluation, and what memory it needs as rows grow; on a CPU.

    python benchmarks/suite_runner.py [--questions 400] [--rounds 3] [--rows 200 2000]

Answers questions of the embedded task with `vgpo.evaluation.evaluate` and with a suite, in one process and in turns,
compares every response, and prints the ratio of CPU times. Then it evaluates sets of two sizes, each in a process of
its own, and prints the ratio of peak memories. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from vgpo.data import load_dataset, to_prompts
from vgpo.evaluation.accuracy import evaluate_answers
from vgpo.evaluation.benchmarks import own_task
from vgpo.evaluation.protocols import protocol_named
from vgpo.recipe.policies import open_checkpoint
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
    """CPU seconds of both, in turns; and responses that differ."""
    seconds: dict[str, list[float]] = {"plain": [], "suite": []}
    for _ in range(rounds):
        plain, suite = (
            timed(partial(by_evaluation, data, num_questions)),
            timed(partial(by_suite, data, num_questions)),
        )
        different = sum(one != other for one, other in zip(plain[0], suite[0], strict=True))
        for name, (_, spent) in (("plain", plain), ("suite", suite)):
            seconds[name].append(spent)
        print(
            f"plain {plain[1]:.1f} s, suite {suite[1]:.1f} s of CPU; {different} of {num_questions} responses differ"
        )
    ratio = median(suite / plain for plain, suite in zip(seconds["plain"], seconds["suite"], strict=True))
    print(f"suite / plain: {ratio:.2f} (median of {rounds})")
    return {"questions": num_questions, "different": different, "cpu_ratio": round(ratio, 3)}


def timed(answers: partial[list[str]]) -> tuple[list[str], float]:
    started = time.process_time()
    return answers(), time.process_time() - started


def by_evaluation(data: Path, num_questions: int) -> list[str]:
    """As `vgpo eval CHECKPOINT --data FILE`."""
    checkpoint = open_checkpoint("toy")
    prompts = to_prompts(load_dataset(str(data)).select(range(num_questions)))
    answer = partial(checkpoint.policy().complete, max_new_tokens=MAX_NEW_TOKENS)
    scores = evaluate_answers(answer, prompts, batch_size=BATCH_SIZE, progress=False)
    return [row["completion"] for row in scores.answers]


def by_suite(data: Path, num_questions: int) -> list[str]:
    """As `vgpo eval CHECKPOINT --tasks embedded --data embedded=FILE`."""
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
            limit=num_questions,
        )
        evaluate_suite(request, Console(quiet=True))
        graded = EvaluationFolder(request.out).read_graded(TASK)
    return [answer.completion for answer in sorted(graded, key=lambda answer: answer.row)]


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
    by_suite(data, size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
