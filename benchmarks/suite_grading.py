"""Time grading and tabulating a benchmark of ten thousand answers, and count verdicts against known ones.

    python benchmarks/suite_grading.py ANSWERS [--answers 10000] [--limit 60] [--seed 0]

ANSWERS has one JSON object per line with `gold` (the reference answer), `answer` (the content of a box), `right` and,
for a multiple-choice question, `options`. The timed answers are built from these: questions in order, each with its
own answer or, as often, with that of another question, so that about every second pair is a new one. Prints seconds
and answers per second for each scorer, and how often `papo`, `accuracy` and `lenient` are right; then one line of
JSON. Exits with status 1 if grading by both scorers and tabulating take longer than --limit seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vgpo.evaluation.answers import Answer, Question
from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.scorers import SCORERS, grade_answers
from vgpo.evaluation.scores import suite_scores, task_scores
from vgpo.evaluation.tables import suite_csv, suite_table
from vgpo.options import LETTERS
from vgpo.rewards import grade
from vgpo.run.environment import cpu_name

THOUGHT = "The image shows a triangle whose sides are given, so the law of cosines applies. " * 12
OUTCOMES = {"TT": (True, True), "TF": (True, False), "FT": (False, True), "FF": (False, False)}


@dataclass(frozen=True)
class Known:
    """An answer to a question, and whether it is right."""

    question: Question
    answer: str
    right: bool


def main() -> None:
    arguments = parse_arguments()
    known = read_known(arguments.answers_file)
    console = Console()
    result = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "answers": arguments.answers}
    result["verdicts"] = verdicts = count_verdicts(known)
    console.print(f"{len(known)} answers with known verdicts: right or wrong (T, F), and graded right or wrong")
    for name, counts in verdicts.items():
        console.print(f"{name:10s}" + "".join(f"{outcome:>5s}{count:5d}" for outcome, count in counts.items()))
    questions, answers = draw_answers(known, arguments.answers, arguments.seed)
    pairs = len({(questions[answer.row].answer, answer.completion) for answer in answers})
    console.print(f"{len(answers)} answers, {pairs} different pairs of reference and answer")
    result["seconds"] = seconds = {name: time_scorer(console, name, questions, answers) for name in SCORERS}
    for name, duration in seconds.items():
        console.print(f"{name:10s}{duration:8.1f} s{len(answers) / duration:10.0f} answers/s")
    total = sum(seconds.values())
    console.print(f"{'both':10s}{total:8.1f} s, limit {arguments.limit:g} s")
    print(json.dumps(result))
    sys.exit(total > arguments.limit)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers_file", type=Path, metavar="ANSWERS")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_known(path: Path) -> list[Known]:
    """The rows of a file of known verdicts. SystemExit with the line that lacks a field."""
    known = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
            options = dict(zip(LETTERS, row.get("options") or (), strict=False))
            question = Question(row=number, id=str(number), problem="", answer=row["gold"], options=options)
            known.append(Known(question, row["answer"], row["right"]))
        except (ValueError, TypeError, KeyError) as error:
            sys.exit(f"{path}, line {number + 1}: expected an object with gold, answer and right ({error!r})")
    return known


def response(row: int, answer: str) -> Answer:
    return Answer(row=row, sample=0, completion=rf"{THOUGHT}\boxed{{{answer}}}", truncated=False)


def count_verdicts(known: Sequence[Known]) -> dict[str, dict[str, int]]:
    """By scorer, how often right and wrong answers are graded right and wrong."""
    questions = [one.question for one in known]
    answers = [response(one.question.row, one.answer) for one in known]
    found = {name: [graded.correct for graded in grade_answers(name, questions, answers)] for name in SCORERS}
    found["accuracy"] = grade([answer.completion for answer in answers], [question.answer for question in questions])
    pairs = {name: list(zip((one.right for one in known), verdicts, strict=True)) for name, verdicts in found.items()}
    return {name: {key: counted.count(pair) for key, pair in OUTCOMES.items()} for name, counted in pairs.items()}


def draw_answers(known: Sequence[Known], number: int, seed: int) -> tuple[list[Question], list[Answer]]:
    """One answer to each of `number` questions, its own or, as often, that of another question."""
    draw = random.Random(seed)
    asked = [known[row % len(known)] for row in range(number)]
    questions = [one.question.model_copy(update={"row": row}) for row, one in enumerate(asked)]
    answers = [draw.choice([one, draw.choice(known)]).answer for one in asked]
    return questions, [response(row, answer) for row, answer in enumerate(answers)]


def time_scorer(console: Console, name: str, questions: Sequence[Question], answers: Sequence[Answer]) -> float:
    """Seconds for grading, scores and tables."""
    start = time.perf_counter()
    graded = grade_answers(name, questions, answers)
    scores = suite_scores(
        [task_scores(BENCHMARKS["mathvista"], graded, num_rows=len(questions), num_asked=len(questions))]
    )
    table = suite_table(scores, name)
    suite_csv(scores, name)
    duration = time.perf_counter() - start
    console.print(table)
    return duration


if __name__ == "__main__":
    main()
