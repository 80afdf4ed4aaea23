"""An evaluation of one checkpoint on a suite: asked row by row, resumed by row, graded, and summed up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from inspect_ai import Task
from inspect_ai import eval as evaluate_task
from inspect_ai.model import Model, get_model
from rich.console import Console

from vgpo.data import Reading
from vgpo.data.fingerprint import fingerprint
from vgpo.evaluation.accuracy import progress_bar
from vgpo.evaluation.answers import Answer, GradedAnswer
from vgpo.evaluation.benchmark_rows import DROPPING, BenchmarkRows, load_benchmark, source_of
from vgpo.evaluation.benchmarks import Benchmark
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.protocols import Protocol
from vgpo.evaluation.scorers import check_scorer
from vgpo.evaluation.scores import SuiteScores, TaskScores, oversized_rows, scores_of_answers, suite_scores
from vgpo.evaluation.tables import suite_csv, suite_record, suite_table
from vgpo.recipe.loading import quiet_libraries
from vgpo.recipe.policies import ENGINES, TRANSFORMERS, OpenCheckpoint, open_checkpoint
from vgpo.run.lock import locked
from vgpo.suite.batching import Batcher
from vgpo.suite.folder import EvaluationFolder, EvaluationRecord, TaskRecord
from vgpo.suite.prompts import THINK_BOXED
from vgpo.suite.tasks import Asking, benchmark_task

SERVED_MAX_NEW_TOKENS = 2048  # of a model that a server answers with, whose training is not known


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What is evaluated, and how; None stands for what the checkpoint was trained with.

    Attributes:
        checkpoint: Folder, hub name or `toy`; of another engine, the name under which it serves the model.
        benchmarks: The tasks, in this order.
        data: Where rows are, as of `source_of`.
        protocol: Decoding and scorer.
        out: The evaluation folder; a new one, or one of the same evaluation, which is resumed.
        template, max_new_tokens, min_pixels, max_pixels, dtype: As of `open_checkpoint`.
        engine: `transformers`, `vllm`, or a provider of inspect-ai, such as `openai-api/NAME`.
        batch_size: Questions answered at once, by a server at most twice as many.
        limit: Rows of each task that are asked at most.
        reading: How rows are read, as of `load_benchmark`.
        seed: Of samples.
    """

    checkpoint: str
    benchmarks: Sequence[Benchmark]
    data: Mapping[str, str] | Sequence[str] | str = ()
    protocol: Protocol
    out: Path
    template: str | None = None
    max_new_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    dtype: str = "auto"
    engine: str = TRANSFORMERS
    batch_size: int = 64
    limit: int | None = None
    reading: Reading = DROPPING
    seed: int = 0


class Subject:
    """The model that is evaluated; its weights are loaded when the first question is asked."""

    def __init__(self, request: SuiteRequest) -> None:
        self.request = request
        self.checkpoint: OpenCheckpoint | None = None
        if request.engine in ENGINES:
            self.checkpoint = open_checkpoint(
                request.checkpoint,
                template=request.template,
                max_new_tokens=request.max_new_tokens,
                min_pixels=request.min_pixels,
                max_pixels=request.max_pixels,
                dtype=request.dtype,
                engine=request.engine,
                untrained_template=THINK_BOXED,
            )

    @property
    def template(self) -> str:
        return self.checkpoint.template if self.checkpoint else self.request.template or THINK_BOXED

    @property
    def max_new_tokens(self) -> int:
        if self.checkpoint:
            return self.checkpoint.max_new_tokens
        return self.request.max_new_tokens or SERVED_MAX_NEW_TOKENS

    def record(self, tasks: dict[str, TaskRecord]) -> EvaluationRecord:
        """What is evaluated, as the folder keeps it."""
        request = self.request
        size = dict(self.checkpoint.processor.image_processor.size) if self.checkpoint else {}
        return EvaluationRecord(
            checkpoint=request.checkpoint,
            checkpoint_digest=self.checkpoint.digest() if self.checkpoint else "",
            engine=request.engine,
            protocol=request.protocol.name,
            template=self.template,
            max_new_tokens=self.max_new_tokens,
            image_size=size,
            seed=request.seed,
            limit=request.limit,
            tasks=tasks,
        )

    @cached_property
    def model(self) -> Model:
        """The model for inspect-ai."""
        request = self.request
        if self.checkpoint is None:
            return get_model(f"{request.engine}/{request.checkpoint}")
        return get_model(
            f"vgpo/{request.checkpoint}",
            memoize=False,  # its weights go when the evaluation ends
            engine=request.engine,
            batch_size=request.batch_size,
            dtype=request.dtype,
            min_pixels=request.min_pixels,
            max_pixels=request.max_pixels,
        )


def evaluate_suite(request: SuiteRequest, console: Console) -> SuiteScores:
    """Ask, grade and sum up; print the table at the end.

    Answers that the folder has already are not asked again. Each new answer is in the folder before it is graded.

    Raises:
        EvaluationError: The folder holds another evaluation, or a question could not be answered.
        ImportError: The scorer needs math-verify, which is not installed.
        DataError: Rows of a task cannot be found or read.
        RecipeError: The checkpoint cannot be loaded.
        RunFolderError: The folder is in use, or the disk refused.
    """
    quiet_libraries()
    check_scorer(request.protocol.scorer)
    subject, folder = Subject(request), EvaluationFolder(request.out)
    with locked(folder.path):
        loaded = [load_rows(benchmark, subject) for benchmark in request.benchmarks]
        tasks = {rows.benchmark.name: task_record(rows, reading_of(rows.benchmark, request)) for rows in loaded}
        record = resumed(folder, subject.record(tasks))
        folder.write_record(record)
        scores: list[TaskScores] = []
        with progress_bar(disable=not console.is_terminal, console=console) as bar:
            total = sum(len(rows.questions) for rows in loaded) * request.protocol.samples
            started = bar.add_task("evaluating", total=total)
            for rows in loaded:
                bar.update(started, description=rows.benchmark.title)
                graded = ask_and_grade(subject, rows, folder, lambda: bar.advance(started))
                folder.write_graded(rows.benchmark.name, graded)
                scores.append(scores_of(rows, graded))
                task = record.tasks[rows.benchmark.name]
                task.oversized, task.num_asked = oversized_rows(graded), scores[-1].num_asked
        folder.write_record(record)
        suite = suite_scores(scores)
        folder.write_scores(suite_record(suite, request.protocol.name), suite_csv(suite, request.protocol.name))
    console.print(suite_table(suite, request.protocol.name))
    return suite


def load_rows(benchmark: Benchmark, subject: Subject) -> BenchmarkRows:
    """The rows of a task that can be asked; the others are among `dropped`."""
    request = subject.request
    return load_benchmark(
        benchmark,
        source_of(benchmark, request.data),
        reading=reading_of(benchmark, request),
        limit=request.limit,
        template=subject.template,
        forbidden=subject.checkpoint.forbidden() if subject.checkpoint else (),
    )


def reading_of(benchmark: Benchmark, request: SuiteRequest) -> Reading:
    """How the rows of a task are read; format and columns are for tasks without public data."""
    return request.reading if benchmark.original is None else Reading(faulty_rows=request.reading.faulty_rows)


def task_record(rows: BenchmarkRows, reading: Reading) -> TaskRecord:
    return TaskRecord(
        source=rows.source,
        format=reading.format,
        columns=dict(reading.columns or {}),
        form=rows.form,
        fingerprint=fingerprint(rows.dataset),
        num_rows=rows.num_rows,
        num_asked=len(rows.questions),
        oversized=[],
        dropped=[str(fault) for fault in rows.dropped],
    )


def scores_of(rows: BenchmarkRows, graded: Sequence[GradedAnswer]) -> TaskScores:
    """The scores of a task, from every answer to its rows."""
    return scores_of_answers(
        rows.benchmark,
        graded,
        num_rows=rows.num_rows,
        num_questions=len(rows.questions),
        num_dropped=len(rows.dropped),
    )


def resumed(folder: EvaluationFolder, record: EvaluationRecord) -> EvaluationRecord:
    """`record` for a folder that may hold an evaluation, with the tasks of that one too.

    Raises:
        EvaluationError: That is another evaluation.
    """
    if not folder.record_path.exists():
        return record
    before = folder.read_record()
    differences = [
        f"{name}: found {getattr(before, name)!r}, expected {getattr(record, name)!r}"
        for name in EvaluationRecord.model_fields
        if name != "tasks" and getattr(before, name) != getattr(record, name)
    ]
    for task, now in record.tasks.items():
        then = before.tasks.get(task)
        if then is not None and then.fingerprint != now.fingerprint:
            differences.append(f"rows of {task}: those of {then.source} were other ones than those of {now.source}")
    if differences:
        listed = "\n".join(f"  {line}" for line in differences)
        raise EvaluationError(
            f"{folder.path} holds another evaluation, whose answers cannot be used:\n{listed}\nName another folder "
            "with --out, or evaluate as before."
        )
    return record.model_copy(update={"tasks": {**before.tasks, **record.tasks}})


def ask_and_grade(
    subject: Subject, rows: BenchmarkRows, folder: EvaluationFolder, advance: Callable[[], None]
) -> list[GradedAnswer]:
    """Every answer to the rows of a task with its verdict, in their order.

    Args:
        subject: The model.
        rows: The rows.
        folder: Has the answers of earlier starts, and gets the new ones.
        advance: Called for each answer.

    Raises:
        EvaluationError: A question could not be answered or graded.
        KeyboardInterrupt: The evaluation was interrupted.
    """
    name, protocol, size = rows.benchmark.name, subject.request.protocol, subject.request.batch_size
    wanted = [(question.row, sample) for question in rows.questions for sample in range(protocol.samples)]
    kept = {(answer.row, answer.sample): answer for answer in folder.read_answers(name)}
    graded: dict[tuple[int, int], GradedAnswer] = {}

    def append(answers: list[Answer]) -> list[None]:
        folder.append_answers(name, answers)
        return [None] * len(answers)

    def done(answer: GradedAnswer) -> None:
        graded[answer.row, answer.sample] = answer
        advance()

    task = benchmark_task(
        Asking(
            rows=rows,
            protocol=protocol,
            template=subject.template,
            max_new_tokens=subject.max_new_tokens,
            seed=subject.request.seed,
            kept=kept,
            keep=Batcher(append, size),
            done=done,
        )
    )
    run_task(task, subject.model if set(wanted) - set(kept) else get_model("none"), folder, size)
    return [graded[key] for key in wanted]


def run_task(task: Task, model: Model, folder: EvaluationFolder, batch_size: int) -> None:
    """Let inspect-ai run a task; its log goes into the folder.

    Raises:
        EvaluationError, KeyboardInterrupt: As of `ask_and_grade`.
    """
    (log,) = evaluate_task(
        task,
        model,
        log_dir=str(folder.logs_path),
        display="none",
        log_level="warning",
        log_images=False,
        log_header_only=True,
        log_realtime=False,
        score_display=False,
        ctl_server=False,
        # While one batch is answered, the next one waits.
        max_samples=2 * batch_size,
        max_connections=2 * batch_size,
    )
    if log.status == "cancelled":
        raise KeyboardInterrupt
    if log.status != "success":
        reason = log.error.message if log.error else log.status
        raise EvaluationError(
            f"{task.name}: {reason}\nThe answers so far are in {folder.path}; the same command goes on from there. "
            f"The log of inspect-ai is {log.location}"
        )
