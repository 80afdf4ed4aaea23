"""Greedy accuracy of a policy on held-out questions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, ProcessorMixin

from vgpo.answers import extract_boxed
from vgpo.evaluation.completions import Completion, complete
from vgpo.policy.generation import evaluation_mode, greedy_decoding
from vgpo.rewards import grade
from vgpo.terminal import draws_bars

T = TypeVar("T")

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Evaluation:
    """Greedy accuracy over all questions; the denominator includes every question.

    Attributes:
        accuracy: Share of correct answers, in [0, 1].
        low: Lower end of the Wilson 95 % interval of the accuracy.
        high: Upper end.
        num_questions: All questions.
        num_correct: Answers graded as correct.
        num_unanswered: Completions without a boxed answer; they count as wrong.
        num_truncated: Completions truncated at the token limit; graded as they are.
        num_oversized: Questions that were not asked because their prompts fill the model's context; they count as
        wrong, not as unanswered.
        answers: A dict per question: problem, answer (the reference), completion, predicted (boxed, or None), correct,
        truncated, oversized.
    """

    accuracy: float
    low: float
    high: float
    num_questions: int
    num_correct: int
    num_unanswered: int
    num_truncated: int
    num_oversized: int = field(default=0, kw_only=True)  # missing in evaluation.json of older versions
    answers: list[dict[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        oversized = f", {self.num_oversized} not asked (too long for the context)" if self.num_oversized else ""
        return (
            f"{self.accuracy:.1%} correct ({self.num_correct} of {self.num_questions}, 95 % interval "
            f"{self.low:.1%} to {self.high:.1%}), {self.num_unanswered} without an answer, "
            f"{self.num_truncated} truncated{oversized}"
        )


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts_dataset: Dataset,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 2048,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Answer every question greedily and grade the answers.

    Prompts, pixel limits and banned tokens are those of training: `prompts_dataset` comes from
    `vgpo.data.to_prompts`, `processor` carries the limits. The model's train/eval mode is restored.

    Args:
        model: A vision-language model on its device; a PEFT model is fine, a sharded one is not.
        processor: Its processor.
        prompts_dataset: Rows with `prompt`, `images`, `problem` and `answer`.
        batch_size: Questions per batch; affects speed and memory only.
        max_new_tokens: Longest response, in tokens.
        chat_template_kwargs: As in training, for chat templates with switches.
        progress: Show a progress bar.

    Raises:
        ValueError: An empty dataset.
    """
    decoding = greedy_decoding(model, processor, max_new_tokens)

    def answer(rows: list[dict[str, Any]]) -> list[Completion]:
        return complete(model, processor, rows, decoding, chat_template_kwargs or {})

    with evaluation_mode(model):
        return evaluate_answers(answer, prompts_dataset, batch_size=batch_size, progress=progress)


def evaluate_answers(
    answer: Callable[[list[dict[str, Any]]], list[Completion]],
    prompts_dataset: Dataset,
    *,
    batch_size: int,
    progress: bool = True,
) -> Evaluation:
    """Ask every question and grade the answers.

    Args:
        answer: Returns a response for each of the given rows.
        prompts_dataset: Rows with `prompt`, `images`, `problem` and `answer`.
        batch_size: Rows per call of `answer`.
        progress: Show a progress bar.

    Raises:
        ValueError: An empty dataset.
    """
    if len(prompts_dataset) == 0:
        raise ValueError("the evaluation set is empty; give at least one question")

    def answered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [answer_of(row, completion) for row, completion in zip(rows, answer(rows), strict=True)]

    return grade_answers(answer_all(answered, prompts_dataset, batch_size=batch_size, progress=progress))


def answer_all(
    answer: Callable[[list[dict[str, Any]]], list[T]],
    prompts_dataset: Dataset,
    *,
    batch_size: int,
    title: str = "evaluating",
    progress: bool = True,
) -> list[T]:
    """The results of `answer` for all questions, in order; arguments as in `evaluate_answers`.

    `title` is that of the progress bar.
    """
    num_questions = len(prompts_dataset)
    answers: list[T] = []
    with progress_bar(disable=not progress) as bar:
        task = bar.add_task(title, total=num_questions)
        for start in range(0, num_questions, batch_size):
            answers += answer([prompts_dataset[i] for i in range(start, min(start + batch_size, num_questions))])
            bar.update(task, completed=len(answers))
    return answers


def grade_answers(answers: list[dict[str, Any]]) -> Evaluation:
    """Grade the answers (dicts with `answer` and `completion`) and count."""
    verdicts = grade([row["completion"] for row in answers], [row["answer"] for row in answers])
    return evaluation_of([{**row, "correct": verdict} for row, verdict in zip(answers, verdicts, strict=True)])


def evaluation_of(graded: list[dict[str, Any]]) -> Evaluation:
    """The scores of graded answers."""
    num_correct = sum(row["correct"] for row in graded)
    num_oversized = sum(row.get("oversized", False) for row in graded)  # missing in older versions
    low, high = wilson_interval(num_correct, len(graded))
    return Evaluation(
        accuracy=num_correct / len(graded),
        low=low,
        high=high,
        num_questions=len(graded),
        num_correct=num_correct,
        num_unanswered=sum(row["predicted"] is None for row in graded) - num_oversized,
        num_truncated=sum(row["truncated"] for row in graded),
        num_oversized=num_oversized,
        answers=graded,
    )


def wilson_interval(num_correct: float, num_questions: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n.

    Unlike p +- z sqrt(p(1-p)/n) it stays in [0, 1] and keeps its width at p = 0 and 1. Counts may be fractional, such
    as an effective number of questions.
    """
    share, weight = num_correct / num_questions, z * z / num_questions
    centre = (share + weight / 2) / (1 + weight)
    margin = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, centre - margin), min(1.0, centre + margin)


def answer_of(row: Mapping[str, Any], completion: Completion) -> dict[str, Any]:
    """The stored fields of an answer: those of `Evaluation.answers` without the verdict."""
    return {
        "problem": row["problem"],
        "answer": row["answer"],
        "completion": completion.text,
        "predicted": extract_boxed(completion.text),
        "truncated": completion.truncated,
        "oversized": completion.oversized,
    }


def progress_bar(*, disable: bool, console: Console | None = None) -> Progress:
    console = console or Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=disable or not draws_bars(console),
        transient=True,
    )
