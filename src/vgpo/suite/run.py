"""Evaluate one checkpoint on a suite: ask row by row, resume by row, grade and aggregate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inspect_ai import Task
from inspect_ai import eval as evaluate_task
from inspect_ai.model import Model
from rich.console import Console

from vgpo.data import Reading
from vgpo.data.fingerprint import fingerprint
from vgpo.evaluation.answers import Answer, GradedAnswer
from vgpo.evaluation.benchmark_rows import BenchmarkRows, load_benchmark, source_of
from vgpo.evaluation.benchmarks import Benchmark, tasks_of
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scorers import check_scorer, grade_answers
from vgpo.evaluation.scores import SuiteScores, oversized_rows, scores_of_answers, suite_scores
from vgpo.evaluation.tables import suite_csv, suite_record, suite_table
from vgpo.recipe.loading import quiet_libraries
from vgpo.run.lock import locked
from vgpo.suite.batching import Batcher
from vgpo.suite.folder import EvaluationFolder, EvaluationRecord, TaskRecord
from vgpo.suite.progress import progress_over
from vgpo.suite.subject import Subject, SuiteRequest
from vgpo.suite.tasks import Asking, benchmark_task, grader_of

__all__ = ["SuiteRequest", "evaluate_suite"]


def evaluate_suite(request: SuiteRequest, console: Console) -> SuiteScores:
    """Ask, grade and aggregate; print the table at the end.

    Answers that the folder has already are not asked again. Each new answer is in the folder before it is graded.

    Returns:
        The scores of all tasks in the folder, those of earlier evaluations too.

    Raises:
        EvaluationError: The folder holds another evaluation, or a question could not be answered.
        ImportError: The scorer needs math-verify, which is not installed.
        DataError: Rows of a task cannot be found or read.
        RecipeError: The checkpoint cannot be loaded.
        EngineError: vLLM is not installed, or fails.
        RunFolderError: The folder is in use, or writing failed.
    """
    quiet_libraries()
    check_scorer(request.protocol.scorer)
    sources = {benchmark.name: source_of(benchmark, request.data) for benchmark in request.benchmarks}
    folder = EvaluationFolder(request.out)
    with locked(folder.path), subject_of(request) as subject:
        record = checked_record(folder, subject.record())
        loaded = [load_rows(benchmark, sources[benchmark.name], subject) for benchmark in request.benchmarks]
        for rows in loaded:
            add_task(folder, record, rows, reading_of(rows.benchmark, request))
        if any(missing(rows, folder, request) for rows in loaded):
            _ = subject.model  # one that cannot be loaded leaves the folder as it was
        folder.write_record(record)
        total = sum(len(rows.questions) for rows in loaded) * request.protocol.samples
        with progress_over(total, console) as progress:
            for rows in loaded:
                progress.begin(rows.benchmark.title)
                graded = ask_and_grade(subject, rows, folder, progress.advance)
                folder.write_graded(rows.benchmark.name, graded)
                task = record.tasks[rows.benchmark.name]
                task.oversized = oversized_rows(graded)
                task.num_asked = len(rows.questions) - len(task.oversized)
                folder.write_record(record)
        suite = stored_scores(folder, record)
        folder.write_scores(suite_record(suite, record.protocol), suite_csv(suite, record.protocol))
    console.print(suite_table(suite, record.protocol))
    return suite


@contextmanager
def subject_of(request: SuiteRequest) -> Iterator[Subject]:
    """The model that is evaluated, whose thread ends with the block."""
    subject = Subject(request)
    try:
        yield subject
    finally:
        subject.close()


def checked_record(folder: EvaluationFolder, record: EvaluationRecord) -> EvaluationRecord:
    """`record`, with the tasks of the evaluation that the folder may hold.

    Raises:
        EvaluationError: That is another evaluation.
    """
    if not folder.record_path.exists():
        return record
    before = folder.read_record()
    # A checkpoint is what its files are, wherever they are.
    ignored = {"tasks", "checkpoint"} if before.checkpoint_digest and record.checkpoint_digest else {"tasks"}
    differences = [
        f"{name}: found {getattr(before, name)!r}, expected {getattr(record, name)!r}"
        for name in EvaluationRecord.model_fields
        if name not in ignored and getattr(before, name) != getattr(record, name)
    ]
    if differences:
        raise other_evaluation(folder, differences)
    return record.model_copy(update={"tasks": dict(before.tasks)})


def other_evaluation(folder: EvaluationFolder, differences: list[str]) -> EvaluationError:
    listed = "\n".join(f"  {line}" for line in differences)
    return EvaluationError(
        f"{folder.path} holds another evaluation, whose answers cannot be used:\n{listed}\nName another folder with "
        "--out, or evaluate as before."
    )


def load_rows(benchmark: Benchmark, source: str, subject: Subject) -> BenchmarkRows:
    """The rows of a task that can be asked; the others are among `dropped`."""
    return load_benchmark(
        benchmark,
        source,
        reading=reading_of(benchmark, subject.request),
        limit=subject.request.limit,
        template=subject.template,
        forbidden=subject.forbidden,
    )


def reading_of(benchmark: Benchmark, request: SuiteRequest) -> Reading:
    """How the rows of a task are read; format and columns are for tasks without public data."""
    return request.reading if benchmark.original is None else Reading(faulty_rows=request.reading.faulty_rows)


def add_task(folder: EvaluationFolder, record: EvaluationRecord, rows: BenchmarkRows, reading: Reading) -> None:
    """Put a task into a record.

    Raises:
        EvaluationError: It is there already, with other rows.
    """
    now = TaskRecord(
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
    then = record.tasks.get(rows.benchmark.name)
    if then is not None and then.fingerprint != now.fingerprint:
        difference = (
            f"rows of {rows.benchmark.name}: those of {then.source} were other ones than those of {now.source}"
        )
        raise other_evaluation(folder, [difference])
    record.tasks[rows.benchmark.name] = now


def missing(rows: BenchmarkRows, folder: EvaluationFolder, request: SuiteRequest) -> bool:
    """Whether an answer to the rows of a task is not in the folder yet."""
    kept = {(answer.row, answer.sample) for answer in folder.read_answers(rows.benchmark.name)}
    return not kept.issuperset(expected_answers(rows, request))


def expected_answers(rows: BenchmarkRows, request: SuiteRequest) -> list[tuple[int, int]]:
    """Row and sample of each answer."""
    return [(question.row, sample) for question in rows.questions for sample in range(request.protocol.samples)]


def ask_and_grade(
    subject: Subject, rows: BenchmarkRows, folder: EvaluationFolder, advance: Callable[[int], None]
) -> list[GradedAnswer]:
    """Every answer to the rows of a task with its verdict, in their order.

    Args:
        subject: The model.
        rows: The rows.
        folder: Has the answers of earlier starts, and gets the new ones.
        advance: Called with a number of answers that are there.

    Raises:
        EvaluationError: A question could not be answered or graded.
        KeyboardInterrupt: The evaluation was interrupted.
    """
    name, request = rows.benchmark.name, subject.request
    keys = expected_answers(rows, request)
    kept = {(answer.row, answer.sample): answer for answer in folder.read_answers(name)}
    if kept.keys() >= set(keys):
        advance(len(keys))
        return grade_answers(request.protocol.scorer, rows.questions, [kept[key] for key in keys])
    graded: dict[tuple[int, int], GradedAnswer] = {}

    def append(answers: list[Answer]) -> list[None]:
        folder.append_answers(name, answers)
        return [None] * len(answers)

    def done(answer: GradedAnswer) -> None:
        graded[answer.row, answer.sample] = answer
        advance(1)

    # An answer is written at once: waiting for others could lose it.
    with Batcher(append, request.batch_size, idle_seconds=0) as keep, grader_of(rows, request.protocol) as grade:
        asking = Asking(
            rows=rows,
            protocol=request.protocol,
            template=subject.template,
            max_new_tokens=subject.max_new_tokens,
            extra_body=subject.extra_body,
            seed=request.seed,
            kept=kept,
            keep=keep,
            grade=grade,
            done=done,
        )
        run_task(benchmark_task(asking), subject.model, folder, request.batch_size)
    return [graded[key] for key in keys]


def run_task(task: Task, model: Model, folder: EvaluationFolder, batch_size: int) -> None:
    """Run one task with inspect-ai; its log is written into the folder.

    Raises:
        EvaluationError, KeyboardInterrupt: As in `ask_and_grade`.
    """
    logs = evaluate_task(
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
    if not logs or logs[0].status == "cancelled":
        raise KeyboardInterrupt
    log = logs[0]
    if log.status != "success":
        reason = log.error.message if log.error else log.status
        raise EvaluationError(
            f"{task.name}: {reason}\nThe answers so far are in {folder.path}; run the same command to resume. "
            f"The log of inspect-ai is {log.location}"
        )


def stored_scores(folder: EvaluationFolder, record: EvaluationRecord) -> SuiteScores:
    """The scores of all tasks of a folder that are graded."""
    graded = [name for name in record.tasks if folder.graded_path(name).is_file()]
    benchmarks = {benchmark.name: benchmark for benchmark in tasks_of("vgpo", graded, own=graded)}
    return suite_scores(
        scores_of_answers(
            benchmarks[name],
            folder.read_graded(name),
            num_rows=record.tasks[name].num_rows,
            num_questions=record.tasks[name].num_asked + len(record.tasks[name].oversized),
            num_dropped=len(record.tasks[name].dropped),
        )
        for name in graded
    )
