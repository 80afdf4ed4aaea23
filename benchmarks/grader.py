"""Compare the speed of the grader and of mathruler in-process: on ordinary answers, and on batches with endless ones.

    python benchmarks/grader.py [--prompts 256] [--workers 2] [--repeats 3] [--limit 30] [--seed 0] [--answers FILE]

Ordinary answers are of the kinds that ViRL39K and Geometry3K have, eight rollouts per prompt, half of them correct.
The symbolic ones all need algebra. In the last two batches 5 % of the answers are power towers, and 5 % are powers
that no cheap rule can tell from honest ones. The start of a worker is timed, too. Prints tables, then one line of
JSON. Nothing is timed before every verdict on ordinary answers is the known one.

Verdicts of the grader, mathruler and math-verify are compared with known ones: those of the ordinary and symbolic
answers, or of FILE, which has one JSON object per line with `gold` (the reference answer), `answer` (the content of a
box) and `right`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mathruler.grader import extract_boxed_content, grade_answer

from vgpo.rewards import Grader
from vgpo.rewards.process import WorkerServer
from vgpo.run.environment import cpu_name

ROOT = Path(__file__).resolve().parents[1]

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None

GROUP = 8
HANGING_PROMPTS = 64
HANGING_SHARE = 0.05
NUM_STARTS = 20
THOUGHT = "The image shows a triangle whose sides are given, so the law of cosines applies. " * 12
WORDS = ["Rectangles", "isosceles triangle", "left", "the red car", "parallel", "Wednesday"]


@dataclass(frozen=True)
class Rollout:
    """A response, its reference answer, and whether it is correct."""

    response: str
    gold: str
    right: bool


@dataclass(frozen=True)
class Question:
    """A reference answer, the same answer as a model writes it, and wrong answers."""

    gold: str
    right: str
    wrong: list[str]


Kind = Callable[[random.Random], Question]


def letter(draw: random.Random) -> Question:
    gold, *wrong = draw.sample("ABCDE", 5)
    return Question(gold, draw.choice([gold, f"({gold})", rf"\text{{{gold}}}"]), wrong)


def integer(draw: random.Random) -> Question:
    gold = draw.randint(0, 5000)
    right = draw.choice([f"{gold:,}", f"{gold}", f"{gold} cm", rf"{gold}^\circ"])
    return Question(str(gold), right, [str(gold + step) for step in (1, 2, 10, -1)])


def decimal(draw: random.Random) -> Question:
    gold = draw.randint(1, 9999) * 10 + draw.randint(1, 9)
    return Question(
        f"{gold / 100:.2f}", f"{gold / 100:.3f}", [f"{(gold + step) / 100:.2f}" for step in (1, 2, 10, -1)]
    )


def root(draw: random.Random) -> Question:
    factor, radicand = draw.randint(2, 400), draw.choice([2, 3, 5, 6, 7, 10, 11, 13, 221])
    wrong = [rf"{factor + step}\sqrt{{{radicand}}}" for step in (1, 2, 3)] + [rf"\sqrt{{{factor * radicand}}}"]
    return Question(rf"{factor} \sqrt {{ {radicand} }}", rf"\sqrt{{{factor * factor * radicand}}}", wrong)


def multiple_of_pi(draw: random.Random) -> Question:
    gold = draw.randint(2, 9000)
    wrong = [rf"{gold + 1}\pi", rf"\frac{{{gold}\pi}}{{2}}", rf"{gold}\pi^2", f"{gold * 3.1416:.2f}"]
    return Question(rf"{gold} \pi", rf"\frac{{{2 * gold}\pi}}{{2}}", wrong)


def word(draw: random.Random) -> Question:
    gold, *wrong = draw.sample(WORDS, 5)
    return Question(gold, gold.lower(), wrong)


# How often each kind of question is drawn.
ORDINARY: dict[Kind, int] = {letter: 35, integer: 35, decimal: 10, root: 8, multiple_of_pi: 4, word: 8}
SYMBOLIC: dict[Kind, int] = {root: 2, multiple_of_pi: 1}


def tower(number: int) -> str:
    return f"9**9**9**{number + 9}"


def slow_power(number: int) -> str:
    return f"{number + 9}**(9*9*9*9*9*9*9*9*9)"


def main() -> None:
    arguments = parse_arguments()
    with Grader(num_workers=arguments.workers) as grader:
        refuse_wrong_verdicts(grader, draw_rollouts(ORDINARY, 256, arguments.seed))
        rates = {
            name: measure_rates(grader, kinds, arguments)
            for name, kinds in (("ordinary", ORDINARY), ("symbolic", SYMBOLIC))
        }
        hanging = {
            name: measure_hanging(grader, write_hanging(answer, arguments.seed), arguments.limit)
            for name, answer in (("power towers", tower), ("slow powers", slow_power))
        }
    report_verdicts(read_answers(arguments.answers) if arguments.answers else draw_answers(arguments))
    report(rates, hanging, measure_starts(), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="prompts of a timed batch, eight rollouts each")
    parser.add_argument("--workers", type=int, default=2, help="processes of the grader")
    parser.add_argument("--repeats", type=int, default=3, help="batches, each of new answers; medians are reported")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds after which mathruler is stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", type=Path, help="a JSON-lines file of answers with known verdicts")
    return parser.parse_args()


def draw_rollouts(kinds: dict[Kind, int], prompts: int, seed: int) -> list[Rollout]:
    """A batch of groups, half of each right."""
    draw = random.Random(seed)
    rollouts = []
    for kind in draw.choices(list(kinds), list(kinds.values()), k=prompts):
        question = kind(draw)
        rollouts += [Rollout(boxed(question.right), question.gold, right=True)] * (GROUP - len(question.wrong))
        rollouts += [Rollout(boxed(answer), question.gold, right=False) for answer in question.wrong]
    return rollouts


def write_hanging(answer: Callable[[int], str], seed: int) -> list[Rollout]:
    """A batch in which some wrong answers, all different, never end in mathruler."""
    rollouts = draw_rollouts({decimal: 1, root: 1}, HANGING_PROMPTS, seed)
    wrong = [i for i, rollout in enumerate(rollouts) if not rollout.right]
    chosen = random.Random(seed).sample(wrong, round(HANGING_SHARE * len(rollouts)))
    for number, i in enumerate(chosen):
        rollouts[i] = Rollout(boxed(answer(number)), rollouts[i].gold, right=False)
    return rollouts


def boxed(answer: str) -> str:
    return rf"<think>{THOUGHT}</think> \boxed{{{answer}}}"


def refuse_wrong_verdicts(grader: Grader, rollouts: Sequence[Rollout]) -> None:
    """End the benchmark if a verdict is not the known one."""
    verdicts = grade(grader, rollouts)
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if verdict != rollout.right:
            answer = extract_boxed_content(rollout.response)
            sys.exit(f"{answer!r} was graded {verdict} against {rollout.gold!r}: nothing was timed.")


def grade(grader: Grader, rollouts: Sequence[Rollout]) -> list[bool]:
    return grader.grade([rollout.response for rollout in rollouts], [rollout.gold for rollout in rollouts])


def measure_rates(grader: Grader, kinds: dict[Kind, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Gradings per second, of the grader and of mathruler alone; each batch is new to both."""
    ours, alone = [], []
    for repeat in range(arguments.repeats):
        rollouts = draw_rollouts(kinds, arguments.prompts, arguments.seed + 1 + repeat)
        started = time.perf_counter()
        grade(grader, rollouts)
        ours.append(len(rollouts) / (time.perf_counter() - started))
        started = time.perf_counter()
        for rollout in rollouts:
            grade_answer(extract_boxed_content(rollout.response), rollout.gold)
        alone.append(len(rollouts) / (time.perf_counter() - started))
    return {"ours": round(median(ours)), "mathruler": round(median(alone))}


def measure_hanging(grader: Grader, rollouts: list[Rollout], limit: float) -> dict[str, Any]:
    """Seconds for a batch; mathruler runs in a process that is stopped at the limit."""
    refused, timeouts = grader.statistics.refused, grader.statistics.timeouts
    started = time.perf_counter()
    verdicts = grade(grader, rollouts)
    seconds = time.perf_counter() - started
    if verdicts != [rollout.right for rollout in rollouts]:
        sys.exit("The hanging answers changed a verdict on the others.")
    context = multiprocessing.get_context("spawn")
    done = context.Value("i", 0)
    process = context.Process(target=grade_alone, args=(rollouts, done))
    process.start()
    process.join(limit)
    process.kill()
    process.join()
    return {
        "rollouts": len(rollouts),
        "seconds": round(seconds, 1),
        "refused": grader.statistics.refused - refused,
        "timeouts": grader.statistics.timeouts - timeouts,
        "mathruler_done": done.value,
    }


def measure_starts() -> dict[str, float]:
    """Milliseconds until the first worker is ready, with the server that it is forked from, and until a later one."""
    server, milliseconds = WorkerServer(seconds=4.0, num_bytes=2 * 1024**3), []
    for _ in range(1 + NUM_STARTS):
        started = time.perf_counter()
        worker = server.start_worker()
        milliseconds.append(1000 * (time.perf_counter() - started))
        worker.close()
    server.close()
    return {"first": round(milliseconds[0]), "later": round(median(milliseconds[1:]), 1)}


def grade_alone(rollouts: Sequence[Rollout], done: Any) -> None:
    for rollout in rollouts:
        grade_answer(extract_boxed_content(rollout.response), rollout.gold)
        done.value += 1


def report(
    rates: dict[str, Any], hanging: dict[str, Any], starts: dict[str, float], arguments: argparse.Namespace
) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{cpu_name()}, {os.cpu_count()} cores, {arguments.workers} workers, commit {commit or 'none'}")
    print(f"{arguments.prompts} prompts x {GROUP} rollouts, {arguments.repeats} batches, seed {arguments.seed}")
    for name, rate in rates.items():
        print(f"{name:14s}{rate['ours']:8,} gradings/s, mathruler in-process {rate['mathruler']:8,}")
    for name, found in hanging.items():
        print(
            f"5 % {name:14s}{found['rollouts']} rollouts in {found['seconds']} s ({found['refused']} refused, "
            f"{found['timeouts']} killed); mathruler in-process: {found['mathruler_done']} rollouts in "
            f"{arguments.limit:g} s, then stopped"
        )
    print(f"start of a worker: {starts['later']} ms; of the first, with its server: {starts['first']} ms")
    print(json.dumps({**rates, **hanging, "start_ms": starts}))


def draw_answers(arguments: argparse.Namespace) -> list[Rollout]:
    return [
        rollout
        for kinds in (ORDINARY, SYMBOLIC)
        for rollout in draw_rollouts(kinds, arguments.prompts, arguments.seed)
    ]


def read_answers(path: Path) -> list[Rollout]:
    """The rows of a file of known verdicts. SystemExit with the line that lacks a field."""
    rollouts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rollouts.append(Rollout(rf"\boxed{{{row['answer']}}}", str(row["gold"]), bool(row["right"])))
        except (ValueError, TypeError, KeyError) as error:
            sys.exit(f"{path}, line {number}: expected an object with gold, answer and right ({error!r})")
    return rollouts


def report_verdicts(rollouts: Sequence[Rollout]) -> None:
    """Print how often each grader grades right and wrong answers right and wrong."""
    print(f"{len(rollouts)} answers with known verdicts")
    print(f"{'':24s}{'right':>16s}{'right':>16s}{'wrong':>16s}{'wrong':>16s}")
    print(f"{'':24s}{'graded right':>16s}{'graded wrong':>16s}{'graded right':>16s}{'graded wrong':>16s}")
    for name, verdicts in grade_with_each(rollouts):
        pairs = list(zip((rollout.right for rollout in rollouts), verdicts, strict=True))
        counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        print(f"{name:24s}" + "".join(f"{count:16,}" for count in counts))
    if not HAS_MATH_VERIFY:
        print("math-verify is not installed: pip install 'vgpo[math-verify]'")


def grade_with_each(rollouts: Sequence[Rollout]) -> Iterator[tuple[str, list[bool]]]:
    with Grader() as grader:
        yield "accuracy", grade(grader, rollouts)
    if HAS_MATH_VERIFY:
        with Grader(fallback_verifier="math-verify") as grader:
            yield "accuracy_math_verify", grade(grader, rollouts)
    yield "mathruler alone", [mathruler_verdict(rollout) for rollout in rollouts]
    if HAS_MATH_VERIFY:
        yield "math-verify alone", [math_verify_verdict(rollout) for rollout in rollouts]


def mathruler_verdict(rollout: Rollout) -> bool:
    return grade_answer(extract_boxed_content(rollout.response), rollout.gold)


def math_verify_verdict(rollout: Rollout) -> bool:
    import math_verify  # type: ignore[import-untyped,import-not-found,unused-ignore]

    gold = rf"\boxed{{{rollout.gold}}}"
    return math_verify.verify(math_verify.parse(gold), math_verify.parse(rollout.response))


if __name__ == "__main__":
    main()
