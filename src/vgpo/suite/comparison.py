"""The content of the page of one or two evaluation folders, as one JSON-serialisable dict."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vgpo.evaluation.accuracy import Z_95
from vgpo.evaluation.answers import GradedAnswer
from vgpo.evaluation.benchmarks import BENCHMARKS, Benchmark, tasks_of
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.paired import (
    AverageDifference,
    ComparisonError,
    PairedRows,
    check_protocols,
    compare_average,
    compare_task,
    pair_rows,
)
from vgpo.evaluation.scores import AVERAGES, Average, TaskScores, scores_of_answers, suite_scores
from vgpo.pages import embed_json
from vgpo.pages.texts import MAX_TEXT_CHARACTERS, truncate
from vgpo.suite.folder import EvaluationFolder, EvaluationRecord, TaskRecord
from vgpo.suite.shown_rows import ShownRow, evenly, row_entry, rows_of_task
from vgpo.suite.thumbnails import ImagesUnavailableError, row_images

NUM_ROWS = 200
MAX_EVALUATIONS = 2
ROW_BYTES = 16_000_000  # of all rows of a page together, with their images
MAX_NAME_CHARACTERS = 300
MAX_FAULTS = 20  # rows left out of a task that are named
DIGITS = 12  # of a fingerprint
# Two evaluations that differ only in these can still be compared; the page says so.
SETTINGS = ("checkpoint_digest", "engine", "protocol", "template", "max_new_tokens", "image_size", "seed", "limit")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A benchmark with the scores of each checkpoint, and of two the rows that they share.

    Attributes:
        benchmark: Which one.
        records: Where its rows came from, None for a checkpoint that was not evaluated on it.
        scores: The same for its scores.
        rows: Of two checkpoints that were both evaluated on it and can be compared, else None.
        incomparable: Why two checkpoints that were both evaluated on it cannot be compared, else None.
        asked: Numbers of the rows that were asked or are oversized.
        candidates: The rows to show first; none of a task that cannot be compared, whose numbers may stand for
            different questions.
    """

    benchmark: Benchmark
    records: list[TaskRecord | None]
    scores: list[TaskScores | None]
    rows: PairedRows | None
    incomparable: str | None
    asked: frozenset[int]
    candidates: list[ShownRow]


def page_data(
    folders: Sequence[EvaluationFolder], *, num_rows: int = NUM_ROWS, with_images: bool = True
) -> dict[str, Any]:
    """Collect what the page of these folders shows.

    Args:
        folders: One or two.
        num_rows: Rows to show at most.
        with_images: Read their images from where the evaluation read them.

    Returns:
        dict, JSON-able:
        `evaluations`: the fields of each `EvaluationRecord` without its tasks, and `folder`.
        `settings`: `name` and `values`, one text per evaluation; `differs`.
        `incomparable`: why two evaluations of a task cannot be compared, by task.
        `several_samples`: whether a row has more than one answer of a checkpoint.
        `other_data`: titles of the tasks whose data differ between the evaluations.
        `tasks`: `name`, `title`, `is_average` (False), `notes`, `sources` and `scores` (per evaluation None, or a
            dict), `difference` (None, or the fields of `TaskDifference`).
        `averages`: `title`, `is_average` (True), `num_tasks` of the paper's, and in the same way `scores` and
            `difference`.
        `rows`: as in `row_entry`, with `images`, places in the list `images`, or None for one that cannot be read.
        `num_rows`: rows that were asked or are oversized, of all tasks. `left_out`: chosen rows that do not fit into
            the page.
        `images`: `uri` (data URI), `width`, `height` in pixels. `without_images`: why there are none, by task.

    Raises:
        RunFolderError: A folder without an evaluation, or with a broken file.
        EvaluationError: An unknown task, an evaluation that did not end, or two of which no task can be compared.
    """
    records = [folder.read_record() for folder in folders]
    tasks = [read_task(benchmark, folders, records, num_rows) for benchmark in tasks_to_show(records)]
    incomparable = incomparable_tasks(tasks)
    chosen = evenly([task.candidates for task in tasks], num_rows)
    limits = [record.limit for record in records]
    images, without_images = images_of(tasks, limits, chosen) if with_images else ({}, [])
    return {
        "evaluations": [
            {**record.model_dump(exclude={"tasks"}), "folder": str(folder.path)}
            for record, folder in zip(records, folders, strict=True)
        ],
        "settings": settings_of(records),
        "incomparable": incomparable,
        "several_samples": any(one.num_samples > 1 for task in tasks for one in task.scores if one is not None),
        "other_data": other_data(tasks),
        "tasks": [task_entry(task) for task in tasks],
        "averages": averages_of(tasks, len(folders)),
        "num_rows": sum(len(task.asked) for task in tasks),
        "without_images": without_images,
        **fitting_rows(chosen, images),
    }


def tasks_to_show(records: Sequence[EvaluationRecord]) -> list[Benchmark]:
    """The tasks of one or two evaluations, in the order of `BENCHMARKS`, then the user's own.

    Raises:
        EvaluationError: No task, or two evaluations of other protocols or without a common task.
    """
    names = {name for record in records for name in record.tasks}
    if not names:
        raise EvaluationError("the evaluation has no task yet; run the same `vgpo eval` command again")
    if len(records) == MAX_EVALUATIONS:
        first, second = records
        check_protocols(first.protocol, second.protocol)
        if not first.tasks.keys() & second.tasks.keys():
            raise ComparisonError(
                f"the evaluations have no task in common: the first has {sorted(first.tasks)}, the second "
                f"{sorted(second.tasks)}; evaluate both on the same --tasks"
            )
    ordered = [name for name in BENCHMARKS if name in names] + sorted(names - BENCHMARKS.keys())
    return tasks_of("vgpo", ordered, own=names)


def read_task(
    benchmark: Benchmark, folders: Sequence[EvaluationFolder], records: Sequence[EvaluationRecord], num_rows: int
) -> Task:
    """Read the verdicts of one task, and keep what the page needs of them."""
    found = [record.tasks.get(benchmark.name) for record in records]
    graded = [
        None if record is None else folder.read_graded(benchmark.name)
        for record, folder in zip(found, folders, strict=True)
    ]
    scores = [
        None if record is None or answers is None else scores_of(benchmark, answers, record)
        for record, answers in zip(found, graded, strict=True)
    ]
    rows, incomparable = paired_or_reason(benchmark, graded, scores)
    return Task(
        benchmark=benchmark,
        records=found,
        scores=scores,
        rows=rows,
        incomparable=incomparable,
        asked=frozenset(answer.row for answers in graded for answer in answers or ()),
        candidates=[] if incomparable else rows_of_task(benchmark.name, graded, num_rows),
    )


def incomparable_tasks(tasks: Sequence[Task]) -> list[str]:
    """Why tasks of two evaluations cannot be compared, for the page; warns of each.

    Raises:
        ComparisonError: There are such tasks, and none that can be compared.
    """
    reasons = [task.incomparable for task in tasks if task.incomparable is not None]
    if reasons and all(task.rows is None for task in tasks):
        raise ComparisonError("\n".join(reasons))
    for reason in reasons:
        logger.warning("%s. The page compares the other tasks.", reason)
    return [truncate(reason, MAX_TEXT_CHARACTERS) for reason in reasons]


def scores_of(benchmark: Benchmark, graded: Sequence[GradedAnswer], record: TaskRecord) -> TaskScores:
    return scores_of_answers(
        benchmark,
        graded,
        num_rows=record.num_rows,
        num_questions=record.num_asked + len(record.oversized),
        num_dropped=len(record.dropped),
    )


def paired(
    benchmark: Benchmark, graded: Sequence[list[GradedAnswer] | None], scores: Sequence[TaskScores | None]
) -> PairedRows | None:
    """The rows of two evaluations of one task, with those that were dropped; None if there is one evaluation."""
    match graded, scores:
        case [list(first), list(second)], [TaskScores() as score, _]:
            return pair_rows(benchmark.name, first, second, num_dropped=score.num_dropped)
    return None


def paired_or_reason(
    benchmark: Benchmark, graded: Sequence[list[GradedAnswer] | None], scores: Sequence[TaskScores | None]
) -> tuple[PairedRows | None, str | None]:
    """What `paired` returns, or why two evaluations of the task cannot be compared."""
    try:
        return paired(benchmark, graded, scores), None
    except ComparisonError as error:
        return None, str(error)


def settings_of(records: Sequence[EvaluationRecord]) -> list[dict[str, Any]]:
    """Name and values of each setting, and whether the evaluations differ in it."""
    settings = [{"name": name, "values": [text_of(getattr(record, name)) for record in records]} for name in SETTINGS]
    return [{**setting, "differs": len(set(setting["values"])) > 1} for setting in settings]


def other_data(tasks: Sequence[Task]) -> list[str]:
    """Tasks whose rows have another fingerprint in the second evaluation: with other images, or in another form.

    Those that cannot be compared are not included.
    """
    compared = [task for task in tasks if task.incomparable is None]
    prints = {task.benchmark.title: {one.fingerprint for one in task.records if one is not None} for task in compared}
    return [title for title, found in prints.items() if len(found) > 1]


def text_of(value: Any) -> str:
    """A setting as text of bounded length."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {one}" for name, one in value.items())
    return "none" if value is None else truncate(str(value), MAX_NAME_CHARACTERS)


def task_entry(task: Task) -> dict[str, Any]:
    return {
        "name": task.benchmark.name,
        "title": task.benchmark.title,
        "is_average": False,
        "notes": task.benchmark.notes,
        "sources": [None if record is None else source_entry(record) for record in task.records],
        "scores": [None if scores is None else score_entry(scores) for scores in task.scores],
        "difference": None if task.rows is None else asdict(compare_task(task.rows)),
    }


def source_entry(record: TaskRecord) -> dict[str, Any]:
    """Where a task's rows came from; of the rows left out, the first few."""
    return {
        "source": truncate(record.source, MAX_NAME_CHARACTERS),
        "form": record.form,
        "fingerprint": record.fingerprint[:DIGITS],
        "num_rows": record.num_rows,
        "dropped": [truncate(fault, MAX_NAME_CHARACTERS) for fault in record.dropped[:MAX_FAULTS]],
        "num_dropped": len(record.dropped),
    }


def score_entry(scores: TaskScores) -> dict[str, Any]:
    return {**asdict(scores), "num_scored": scores.num_scored, "num_all": scores.num_expected or scores.num_rows}


def averages_of(tasks: Sequence[Task], num_evaluations: int) -> list[dict[str, Any]]:
    """The paper's averages of each evaluation, and of two their differences."""
    rows = {task.benchmark.name: task.rows for task in tasks if task.rows is not None}
    suites = [
        suite_scores([found for task in tasks if (found := task.scores[place]) is not None]).averages
        for place in range(num_evaluations)
    ]
    by_name = [{average.name: average for average in averages} for averages in suites]
    return [
        average_entry(name, [averages.get(name) for averages in by_name], compare_average(name, names, rows))
        for name, names in AVERAGES.items()
        if any(name in averages for averages in by_name)
    ]


def average_entry(name: str, scores: Sequence[Average | None], difference: AverageDifference | None) -> dict[str, Any]:
    """An average of each evaluation, and of two the difference over the tasks that both have."""
    partial = {task for average in scores if average is not None for task in average.partial}
    found = None if difference is None else asdict(difference)
    return {
        "title": name,
        "is_average": True,
        "num_tasks": len(AVERAGES[name]),
        "scores": [None if average is None else with_interval(average) for average in scores],
        "difference": found and {**found, "partial": sorted(partial.intersection(found["tasks"]))},
    }


def with_interval(average: Average) -> dict[str, Any]:
    """An average with its normal 95 % interval; `low` and `high` are None where a task has no error."""
    margin = None if average.standard_error is None else Z_95 * average.standard_error
    return {
        **asdict(average),
        "low": None if margin is None else max(0.0, average.accuracy - margin),
        "high": None if margin is None else min(1.0, average.accuracy + margin),
    }


def images_of(
    tasks: Sequence[Task], limits: Sequence[int | None], chosen: Sequence[ShownRow]
) -> tuple[dict[tuple[str, int], Any], list[str]]:
    """Images by task and number of the row, and why those of a task cannot be shown; `limits` of each evaluation."""
    images: dict[tuple[str, int], Any] = {}
    reasons = []
    for task in tasks:
        name = task.benchmark.name
        read_by = zip(task.records, limits, strict=True)
        record, limit = next((record, limit) for record, limit in read_by if record is not None)
        shown = {row.question.row for row in chosen if row.task == name}
        try:
            found = row_images(task.benchmark, record, limit, asked=task.asked, shown=shown) if shown else {}
        except ImagesUnavailableError as error:
            reasons.append(truncate(str(error), MAX_NAME_CHARACTERS))
        else:
            images.update({(name, row): entries for row, entries in found.items()})
    return images, reasons


def fitting_rows(chosen: Sequence[ShownRow], images: dict[tuple[str, int], Any]) -> dict[str, Any]:
    """The rows that fit into the page, as `rows`, with their images, each once, as `images`; and `left_out`."""
    entries: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    embedded: list[Any] = []
    room = ROW_BYTES
    for row in chosen:
        found = images.get((row.task, row.question.row), [])
        entry = row_entry(row)
        new = {image["uri"]: image for image in found if image is not None and image["uri"] not in places}
        size = len(embed_json(entry)) + sum(map(len, new))
        if size > room:
            continue
        room -= size
        for uri, image in new.items():
            places[uri] = len(embedded)
            embedded.append(image)
        entries.append({**entry, "images": [None if image is None else places[image["uri"]] for image in found]})
    return {"rows": entries, "images": embedded, "left_out": len(chosen) - len(entries)}
