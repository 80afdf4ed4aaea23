"""Evaluation folders as tests need them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgpo.evaluation.answers import Answer, GradedAnswer, Question
from vgpo.suite.folder import EvaluationFolder, EvaluationRecord, TaskRecord

TASK = "geometry3k"


def question(row: int, **fields: Any) -> Question:
    return Question(
        **({"row": row, "id": f"q{row}", "problem": f"<image>What is {row}?", "answer": str(row)} | fields)
    )


def graded(row: int, *, correct: bool, sample: int = 0, **fields: Any) -> GradedAnswer:
    """The answer to question `row`; `fields` of the answer, or of its question."""
    asked = {name: fields.pop(name) for name in list(fields) if name in Question.model_fields}
    predicted = str(row) if correct else "no"
    given = {"completion": f"So \\boxed{{{predicted}}}", "truncated": False, "predicted": predicted}
    return GradedAnswer(
        **({"row": row, "sample": sample, "question": question(row, **asked), "correct": correct} | given | fields)
    )


def oversized(row: int, **fields: Any) -> GradedAnswer:
    """The answer to question `row` as the runner writes it if the prompt fills the context."""
    return graded(row, correct=False, completion="", predicted=None, oversized=True, **fields)


def answer(row: int, sample: int = 0) -> Answer:
    return Answer(row=row, sample=sample, completion=f"So {row}", truncated=False)


def task_record(num_rows: int, **fields: Any) -> TaskRecord:
    facts = {
        "source": "nowhere", "form": "hub", "fingerprint": "0" * 64, "num_rows": num_rows, "num_asked": num_rows,
        "oversized": [], "dropped": [],
    }  # fmt: skip
    return TaskRecord(**(facts | fields))


def evaluation_record(tasks: dict[str, TaskRecord], **fields: Any) -> EvaluationRecord:
    facts = {
        "checkpoint": "runs/vgpo", "checkpoint_digest": "a" * 64, "engine": "transformers", "protocol": "papo-greedy",
        "template": "think_boxed", "max_new_tokens": 2048, "image_size": {"longest_edge": 1003520}, "seed": 0,
        "limit": None,
    }  # fmt: skip
    return EvaluationRecord(tasks=tasks, **(facts | fields))


def write_evaluation(
    path: Path,
    answers: dict[str, Sequence[GradedAnswer]],
    tasks: dict[str, TaskRecord] | None = None,
    **fields: Any,
) -> EvaluationFolder:
    """A folder with these verdicts by task; `fields` of its record."""
    folder = EvaluationFolder(path)
    rows = {task: {answer.row for answer in given} for task, given in answers.items()}
    records = {task: task_record(len(asked)) for task, asked in rows.items()}
    folder.write_record(evaluation_record(records | (tasks or {}), **fields))
    for task, given in answers.items():
        folder.write_graded(task, given)
    return folder
