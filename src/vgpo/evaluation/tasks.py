"""Benchmarks evaluated in the process that holds the model, on a fixed sample of their rows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from vgpo.data import DataError, to_prompts
from vgpo.evaluation.accuracy import answer_all
from vgpo.evaluation.answers import Answer, GradedAnswer, Question
from vgpo.evaluation.benchmark_rows import PAPO, load_benchmark
from vgpo.evaluation.benchmarks import Benchmark
from vgpo.evaluation.completions import Completion, complete, context_length_of
from vgpo.evaluation.protocols import Protocol
from vgpo.evaluation.scorers import grade_answers
from vgpo.evaluation.scores import TaskScores, scores_of_answers
from vgpo.policy.generation import evaluation_mode, greedy_decoding

SAMPLE_SEED = 0


@dataclass(frozen=True)
class Task:
    """A benchmark and the rows of it that are asked.

    Attributes:
        benchmark: Which one.
        source: Source of its rows.
        prompts: Rows of `vgpo.data.to_prompts`.
        questions: The same rows, for a scorer.
        num_rows: Rows of the benchmark in the source.
        num_dropped: Rows of the sample that cannot be asked; they count as wrong.
    """

    benchmark: Benchmark
    source: str
    prompts: Dataset
    questions: list[Question]
    num_rows: int
    num_dropped: int


def load_task(
    benchmark: Benchmark, source: str, *, template: str, limit: int | None = None, forbidden: Sequence[str] = ()
) -> Task:
    """A benchmark with its prompts, or with a fixed sample of them.

    Rows in the form of PAPO-Eval contain their instruction and get no template.

    Args:
        benchmark: Which one.
        source: As in `vgpo.evaluation.benchmark_rows.load_benchmark`.
        template: Of all other rows, as `vgpo.data.to_prompts` takes it.
        limit: Sample size, at least 1; None for all. The sample may include rows that cannot be asked.
        forbidden: What no problem may contain, as in `vgpo.data.check_dataset`.

    Raises:
        DataError: The rows cannot be loaded, or none of the sample can be asked.
    """
    rows = load_benchmark(benchmark, source, template=template, forbidden=forbidden)
    asked = [question.row for question in rows.questions]
    lost = [fault.row for fault in rows.dropped if fault.row is not None]
    sample = drawn_rows([*asked, *lost], limit)
    kept = [number for number, row in enumerate(asked) if row in sample]
    if not kept:
        raise DataError(f"none of the {len(sample)} sampled rows of {benchmark.title} can be asked; raise the limit")
    return Task(
        benchmark=benchmark,
        source=rows.source,
        prompts=to_prompts(rows.dataset.select(kept), "plain" if rows.form == PAPO else template),
        questions=[rows.questions[number] for number in kept],
        num_rows=rows.num_rows,
        num_dropped=sum(row in sample for row in lost),
    )


def drawn_rows(rows: Sequence[int], limit: int | None) -> set[int]:
    """A fixed sample of `limit` of these rows; all without a limit."""
    if limit is None or limit >= len(rows):
        return set(rows)
    return set(random.Random(SAMPLE_SEED).sample(sorted(rows), limit))


def evaluate_task(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    task: Task,
    protocol: Protocol,
    *,
    batch_size: int,
    max_new_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[TaskScores, list[GradedAnswer]]:
    """Answer the questions of a task greedily, and grade the answers under a protocol.

    Args:
        model: A vision-language model on its device; its train/eval mode is restored.
        processor: Its processor.
        task: Of `load_task`.
        protocol: A greedy one.
        batch_size: Questions answered at once.
        max_new_tokens: Longest response, in tokens.
        chat_template_kwargs: As in training.
        progress: Show a progress bar.
    """
    decoding = greedy_decoding(model, processor, max_new_tokens)

    length = context_length_of(model.config)

    def answer(rows: list[dict[str, Any]]) -> list[Completion]:
        return complete(model, processor, rows, decoding, chat_template_kwargs or {}, context_length=length)

    with evaluation_mode(model):
        found = answer_all(answer, task.prompts, batch_size=batch_size, title=task.benchmark.title, progress=progress)
    answers = [
        Answer(row=question.row, sample=0, completion=one.text, truncated=one.truncated, oversized=one.oversized)
        for question, one in zip(task.questions, found, strict=True)
    ]
    graded = grade_answers(protocol.scorer, task.questions, answers)
    scores = scores_of_answers(
        task.benchmark,
        graded,
        num_rows=task.num_rows,
        num_questions=len(task.questions),
        num_dropped=task.num_dropped,
    )
    return scores, graded
