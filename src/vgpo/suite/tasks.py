"""Benchmarks as tasks of inspect-ai."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, Content, ContentImage, ContentText, GenerateConfig, ModelOutput
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from vgpo.data import image_size, to_prompts
from vgpo.data.images import encoded_image
from vgpo.evaluation.answers import Answer, GradedAnswer, Question
from vgpo.evaluation.benchmark_rows import BenchmarkRows
from vgpo.evaluation.protocols import Protocol
from vgpo.evaluation.scorers import grade_answers
from vgpo.suite.batching import Batcher

INDEX, CATEGORY, CLUSTER = "index", "category", "cluster"  # of the metadata of a sample
IMAGE_PATCH = 28 * 28  # pixels of an image token in Qwen2.5-VL; only the order of the samples depends on it
CHARACTERS_PER_TOKEN = 4

Keep = Callable[[Answer], Awaitable[None]]


async def keep_nothing(answer: Answer) -> None:
    """inspect-ai's log is all that keeps the answer."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a benchmark is asked.

    Attributes:
        rows: Its rows.
        protocol: Decoding and scorer.
        template: Of prompts; rows that have an instruction of their own are asked as they are.
        max_new_tokens: Longest response, in tokens; None for what the model's provider says.
        seed: Of samples: response `sample` to row number `row` is drawn with `seed` + 1,000,003 * sample + row.
        kept: Answers of an earlier start, by row and sample; these are not asked again.
        keep: Gets each new answer before it is graded.
        done: Gets each graded answer, new or kept.
        grading_size: Answers graded at once.
    """

    rows: BenchmarkRows
    protocol: Protocol
    template: str
    max_new_tokens: int | None = None
    seed: int = 0
    kept: dict[tuple[int, int], Answer] = field(default_factory=dict)
    keep: Keep = keep_nothing
    done: Callable[[GradedAnswer], None] = lambda answer: None
    grading_size: int = 256


def benchmark_task(asking: Asking) -> Task:
    """A benchmark as a task, with accuracy, clustered standard error and accuracy by category."""
    rows, protocol = asking.rows, asking.protocol
    return Task(
        dataset=MemoryDataset(samples_of(rows), name=rows.benchmark.name, location=rows.source),
        solver=ask(asking),
        scorer=verdict(asking),
        epochs=Epochs(protocol.samples, "mean"),
        config=GenerateConfig(temperature=protocol.temperature, max_tokens=asking.max_new_tokens),
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
    metadata = {INDEX: index, CATEGORY: question.category or "", CLUSTER: question.cluster or f"row {question.row}"}
    return Sample(id=question.id, input=question.problem, target=question.answer, metadata=metadata)


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
    prompts = to_prompts(asking.rows.dataset, asking.template, read=as_data_uri)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question = question_of(asking.rows, state)
        sample = state.epoch - 1
        kept = asking.kept.get((question.row, sample))
        if kept is not None:
            state.output = ModelOutput.from_content(str(state.model), kept.completion)
            return with_answer(state, kept)
        state.messages = [ChatMessageUser(content=content_of(prompts[state.metadata[INDEX]]))]
        seed = asking.seed + 1_000_003 * sample + question.row
        state = await generate(state, seed=seed if asking.protocol.temperature else None)
        reason = state.output.stop_reason
        answer = Answer(
            row=question.row,
            sample=sample,
            completion=state.output.completion,
            truncated=reason == "max_tokens",
            oversized=reason == "model_length",
        )
        await asking.keep(answer)
        return with_answer(state, answer)

    return solve


def question_of(rows: BenchmarkRows, state: TaskState) -> Question:
    return rows.questions[state.metadata[INDEX]]


def with_answer(state: TaskState, answer: Answer) -> TaskState:
    state.store.set("answer", answer.model_dump())
    return state


def content_of(row: dict[str, Any]) -> list[Content]:
    """The user turn of a row of `to_prompts` whose images are data URIs."""
    images = iter(row["images"])
    (message,) = row["prompt"]
    return [
        ContentImage(image=next(images)) if part["type"] == "image" else ContentText(text=part["text"])
        for part in message["content"]
    ]


def as_data_uri(image: Any) -> str:
    """An image of a data set as every provider takes it, with the bytes that are stored."""
    data = encoded_image(image)["bytes"]
    return f"data:image/{kind_of(data)};base64,{base64.b64encode(data).decode('ascii')}"


def kind_of(data: bytes) -> str:
    """The subtype of `image/...` of an encoded image, by its first bytes."""
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}
    found = next((name for start, name in starts.items() if data.startswith(start)), None)
    return found or ("webp" if data[8:12] == b"WEBP" else "png")


@scorer(metrics=[accuracy(), stderr(cluster=CLUSTER), grouped(accuracy(), CATEGORY, all=False)])
def verdict(asking: Asking) -> Scorer:
    """Grade an answer by the scorer of the protocol, together with the others that are there."""
    grader: Batcher[tuple[Question, Answer], GradedAnswer] = Batcher(
        lambda pairs: grade_answers(asking.protocol.scorer, *map(list, zip(*pairs, strict=True))), asking.grading_size
    )

    async def score(state: TaskState, target: Target) -> Score:
        answer = Answer.model_validate(state.store.get("answer"))
        graded = await grader((question_of(asking.rows, state), answer))
        asking.done(graded)
        return Score(
            value=float(graded.correct),
            answer=graded.predicted,
            metadata={"truncated": graded.truncated, "oversized": graded.oversized},
        )

    return score
