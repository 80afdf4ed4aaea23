"""Which rows a page shows of an evaluation, or of two, and what it shows of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vgpo.evaluation.answers import GradedAnswer, Question
from vgpo.evaluation.paired import share_right
from vgpo.pages.texts import MAX_TEXT_CHARACTERS, truncate

MAX_ANSWER_CHARACTERS = 400
MAX_COMPLETION_CHARACTERS = 20_000
MAX_SAMPLES = 8  # answers of a checkpoint to a row

Answers = Sequence[GradedAnswer]  # of one checkpoint to one row

# What a row shows about one checkpoint, and about two; the order in which rows are chosen.
MIXED, WRONG, RIGHT = "mixed", "wrong", "right"
FIRST, SECOND, NEITHER, BOTH = "first", "second", "neither", "both"
PRIORITIES = {FIRST: 0, SECOND: 0, MIXED: 1, NEITHER: 1, WRONG: 1, RIGHT: 2, BOTH: 2}


@dataclass(frozen=True)
class ShownRow:
    """A row of a task with the answers of each checkpoint; none of one that was not evaluated on the task."""

    task: str
    question: Question
    answers: tuple[Answers, ...]

    @property
    def outcome(self) -> str:
        """Who has it right: of two checkpoints, who more often; of one, whether always or never."""
        shares = [share_right(given) for given in self.answers if given]
        if len(shares) == 1:
            return {0.0: WRONG, 1.0: RIGHT}.get(shares[0], MIXED)
        first, second = shares
        if first == second:
            return BOTH if first > 0 else NEITHER
        return FIRST if first > second else SECOND


def rows_of_task(task: str, graded: Sequence[Answers | None], number: int) -> list[ShownRow]:
    """The first `number` rows of a task, those first on which the checkpoints differ, then those that are wrong.

    Args:
        task: Name of the benchmark.
        graded: The answers of each checkpoint, None for one that was not evaluated on the task.
        number: How many, at most.
    """
    by_row: dict[int, tuple[list[GradedAnswer], ...]] = {}
    for place, answers in enumerate(graded):
        for answer in answers or ():
            by_row.setdefault(answer.row, tuple([] for _ in graded))[place].append(answer)
    rows = [
        ShownRow(task, next(given[0].question for given in answers if given), answers)
        for _, answers in sorted(by_row.items())
    ]
    return sorted(rows, key=lambda row: PRIORITIES[row.outcome])[:number]


def evenly(tasks: Iterable[Sequence[ShownRow]], number: int) -> list[ShownRow]:
    """The first `number` of all rows, as many of each task as there are, in the order of the tasks."""
    ranked = [(rank, place, row) for place, rows in enumerate(tasks) for rank, row in enumerate(rows)]
    chosen = sorted(ranked, key=lambda one: one[:2])[:number]
    return [row for _, _, row in sorted(chosen, key=lambda one: (one[1], one[0]))]


def row_entry(row: ShownRow) -> dict[str, Any]:
    """What the browser shows of a row: long texts cut, few samples."""
    question = row.question
    return {
        "task": row.task,
        "row": question.row,
        "id": truncate(question.id, MAX_ANSWER_CHARACTERS),
        "category": None if question.category is None else truncate(question.category, MAX_ANSWER_CHARACTERS),
        "problem": truncate(question.problem, MAX_TEXT_CHARACTERS),
        "answer": truncate(question.answer, MAX_ANSWER_CHARACTERS),
        "outcome": row.outcome,
        "num_right": [sum(answer.correct for answer in given) for given in row.answers],
        "num_answers": [len(given) for given in row.answers],
        "answers": [[answer_entry(answer) for answer in given[:MAX_SAMPLES]] for given in row.answers],
    }


def answer_entry(answer: GradedAnswer) -> dict[str, Any]:
    return {
        "predicted": None if answer.predicted is None else truncate(answer.predicted, MAX_ANSWER_CHARACTERS),
        "correct": answer.correct,
        "truncated": answer.truncated,
        "oversized": answer.oversized,
        "completion": truncate(answer.completion, MAX_COMPLETION_CHARACTERS),
    }
