"""Benchmarks as tasks of inspect-ai."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentReasoning,
    GenerateConfig,
    ModelOutput,
    StopReason,
    get_model,
)
from inspect_ai.scorer import Metric, Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from vgpo.data import image_size, to_prompts
from vgpo.evaluation.answers import Answer, GradedAnswer, Question
from vgpo.evaluation.benchmark_rows import BenchmarkRows
from vgpo.evaluation.protocols import Protocol
from vgpo.evaluation.scorers import grade_answers
from vgpo.suite.batching import Batcher
from vgpo.suite.prompts import PAPO, PLAIN, THINK_BOXED, as_data_uri, content_of

INDEX, CATEGORY, CLUSTER = "index", "category", "cluster"  # of the metadata of a sample
IMAGE_PATCH = 28 * 28  # pixels of an image token in Qwen2.5-VL; only the order of the samples depends on it
CHARACTERS_PER_TOKEN = 4

GRADED_AT_ONCE = 256

Keep = Callable[[Answer], Awaitable[None]]
Grade = Callable[[Answer], Awaitable[GradedAnswer]]


async def keep_nothing(answer: Answer) -> None:
    """inspect-ai's log is all that keeps the answer."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a benchmark is asked.

    Attributes:
        rows: Its rows.
        protocol: Decoding and scorer.
        template: Of prompts; None for that of the checkpoint's run, or `think_boxed` where the provider knows none.
            Rows that have an instruction of their own (PAPO-Eval's) are asked as they are.
        max_new_tokens: Longest response, in tokens; None for what the model's provider says.
        extra_body: Further fields of each request to a server.
        seed: Of samples: response `sample` to row number `row` asks for the seed `seed` + 1,000,003 * sample + row.
            vLLM and servers follow it; transformers draws a complete batch with the seed of its first row.
        kept: Answers of an earlier start, by row and sample; these are not asked again.
        keep: Gets each new answer before it is graded.
        done: Gets each graded answer, new or kept.
        grade: Grades an answer; None for a `Batcher` of its own.
    """

    rows: BenchmarkRows
    protocol: Protocol
    template: str | None = None
    max_new_tokens: int | None = None
    extra_body: dict[str, Any] | None = None
    seed: int = 0
    kept: dict[tuple[int, int], Answer] = field(default_factory=dict)
    keep: Keep = keep_nothing
    done: Callable[[GradedAnswer], None] = lambda answer: None
    grade: Grade | None = None


def benchmark_task(asking: Asking) -> Task:
    """A benchmark as a task, with accuracy, clustered standard error and accuracy by category."""
    rows, protocol = asking.rows, asking.protocol
    return Task(
        dataset=MemoryDataset(samples_of(rows), name=rows.benchmark.name, location=rows.source),
        solver=ask(asking),
        scorer=verdict(asking),
        metrics=metrics_of(rows),
        epochs=Epochs(protocol.samples, "mean"),
        config=GenerateConfig(
            temperature=protocol.temperature,
            top_p=1.0,
            max_tokens=asking.max_new_tokens,
            extra_body=asking.extra_body,
        ),
        fail_on_error=True,
        name=rows.benchmark.name,
        metadata={"protocol": protocol.name, "source": rows.source, "form": rows.form, "template": asking.template},
    )


def samples_of(rows: BenchmarkRows) -> list[Sample]:
    """A sample for each question, the longest prompt first: batches are then of one length, and memory peaks early."""
    lengths = prompt_lengths(rows)
    order = sorted(range(len(rows.questions)), key=lambda index: -lengths[index])
    return [sample_of(index, rows.questions[index]) for index in order]


def sample_of(index: int, question: Question) -> Sample:
    """Text only: images are read when they are asked about."""
    metadata = {
        INDEX: index,
        "name": question.id,
        CATEGORY: question.category or "",
        CLUSTER: question.cluster or f"row {question.row}",
    }
    # Names of rows may repeat; numbers do not.
    return Sample(id=question.row, input=question.problem, target=question.answer, metadata=metadata)


def prompt_lengths(rows: BenchmarkRows) -> list[float]:
    """Estimated tokens of each prompt, from the text and the headers of the images."""
    return [
        len(row["problem"]) / CHARACTERS_PER_TOKEN
        + sum(height * width / IMAGE_PATCH for height, width in row["images"])
        for row in to_prompts(rows.dataset, read=image_size)
    ]


@solver
def ask(asking: Asking) -> Solver:
    """Ask about a row with its images, or take the answer that an earlier start has kept."""
    prompts_of = functools.cache(lambda template: to_prompts(asking.rows.dataset, template, read=as_data_uri))

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = question_of(asking.rows, state)
        sample = state.epoch - 1
        kept = asking.kept.get((question.row, sample))
        if kept is not None:
            state.output = ModelOutput.from_content(str(state.model), kept.completion, stop_reason_of(kept))
            return state
        prompts = prompts_of(template_of(asking))
        state.messages = [ChatMessageUser(content=content_of(prompts[state.metadata[INDEX]]))]
        seed = asking.seed + 1_000_003 * sample + question.row
        state = await generate(state, seed=seed if asking.protocol.temperature else None)
        await asking.keep(answer_in(state, question))
        return state

    return solve


def template_of(asking: Asking) -> str:
    """The template that rows are asked with."""
    if asking.rows.form == PAPO:
        return PLAIN
    return asking.template or str(getattr(get_model().api, "template", THINK_BOXED))


def question_of(rows: BenchmarkRows, state: TaskState) -> Question:
    return rows.questions[state.metadata[INDEX]]


def answer_in(state: TaskState, question: Question) -> Answer:
    """The answer of the model."""
    return Answer(
        row=question.row,
        sample=state.epoch - 1,
        completion=whole_text(state.output),
        truncated=state.output.stop_reason == "max_tokens",
        oversized=state.output.stop_reason == "model_length",
    )


def whole_text(output: ModelOutput) -> str:
    """A response as it was generated: inspect-ai takes `<think>...</think>` of a server's response apart."""
    if output.empty or isinstance(output.message.content, str):
        return output.completion
    parts = output.message.content
    return "".join(
        f"<think>{part.reasoning}</think>" if isinstance(part, ContentReasoning) else getattr(part, "text", "")
        for part in parts
    )


def stop_reason_of(answer: Answer) -> StopReason:
    """Why the model stopped, as inspect-ai names it."""
    if answer.oversized:
        return "model_length"
    return "max_tokens" if answer.truncated else "stop"


def metrics_of(rows: BenchmarkRows) -> list[Metric | dict[str, list[Metric]]]:
    """Accuracy, its clustered standard error and, where questions have categories, accuracy in each."""
    metrics: list[Metric | dict[str, list[Metric]]] = [accuracy(), stderr(cluster=CLUSTER)]
    if any(question.category for question in rows.questions):
        metrics.append(grouped(accuracy(), CATEGORY, all=False))
    return metrics


def grader_of(rows: BenchmarkRows, protocol: Protocol) -> Batcher[Answer, GradedAnswer]:
    """Grades answers that come at about the same time together."""
    return Batcher(partial(grade_answers, protocol.scorer, rows.questions), GRADED_AT_ONCE)


@scorer(metrics=[accuracy(), stderr(cluster=CLUSTER)])
def verdict(asking: Asking) -> Scorer:
    """Grade an answer by the scorer of the protocol, together with the others that are there."""
    grade = asking.grade or grader_of(asking.rows, asking.protocol)

    async def score(state: TaskState, target: Target) -> Score:
        graded = await grade(answer_in(state, question_of(asking.rows, state)))
        asking.done(graded)
        return Score(
            value=float(graded.correct),
            answer=graded.predicted,
            metadata={"truncated": graded.truncated, "oversized": graded.oversized},
        )

    return score
