"""Scores of several evaluations in one table."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scores import AVERAGES
from vgpo.evaluation.tables import MISSING, percent
from vgpo.records import Record
from vgpo.run.storage import check_record
from vgpo.suite.folder import EvaluationFolder
from vgpo.terminal import right
from vgpo.text import visible

PARTIAL = "*"
NOTE = f"{PARTIAL} partial: rows of the benchmark, or tasks of the average, are missing"


class Score(Record):
    """What is read of a task or an average in scores.json."""

    accuracy: float
    standard_error: float | None
    is_partial: bool


class TaskScore(Score):
    task: str
    title: str


class AverageScore(Score):
    name: str


class ScoresRecord(Record):
    """scores.json, as far as a scoreboard needs it."""

    protocol: str
    tasks: list[TaskScore]
    averages: list[AverageScore]


@dataclass(frozen=True)
class Scoreboard:
    """Scores of evaluations under one protocol.

    Attributes:
        protocol: Its name.
        titles: Titles of the columns, tasks and then averages, by name.
        rows: For each evaluation its name and its scores, by the name of the column.
    """

    protocol: str
    titles: dict[str, str]
    rows: list[tuple[str, Mapping[str, Score]]]


def read_scoreboard(folders: Sequence[EvaluationFolder]) -> Scoreboard:
    """The scores of finished evaluations.

    Raises:
        EvaluationError: Two have different protocols.
        RunFolderError: A folder has no scores, or a broken file.
    """
    found = [check_record(ScoresRecord, folder.read_scores(), str(folder.scores_path)) for folder in folders]
    for folder, record in zip(folders, found, strict=True):
        if record.protocol != found[0].protocol:
            raise EvaluationError(
                f"{folders[0].path} was evaluated by {found[0].protocol!r} and {folder.path} by {record.protocol!r}; "
                "such scores are not comparable, print them separately"
            )
    tasks = {score.task: score.title for record in found for score in record.tasks}
    ordered = [name for name in BENCHMARKS if name in tasks] + [name for name in tasks if name not in BENCHMARKS]
    averages = {score.name for record in found for score in record.averages}
    return Scoreboard(
        protocol=found[0].protocol,
        titles={name: tasks[name] for name in ordered} | {name: name for name in AVERAGES if name in averages},
        rows=[(str(folder.path), scores_by_name(record)) for folder, record in zip(folders, found, strict=True)],
    )


def scores_by_name(record: ScoresRecord) -> dict[str, Score]:
    tasks = {score.task: score for score in record.tasks}
    return {**tasks, **{score.name: score for score in record.averages}}


def scoreboard_table(board: Scoreboard) -> Table:
    """A row for each task and average, a column for each evaluation, under its number in `legend`."""
    numbers = range(1, len(board.rows) + 1)
    table = Table(
        Column("accuracy, %", no_wrap=True),
        *(right(str(number)) for number in numbers),
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column, title in board.titles.items():
        cells = (cell_of(scores.get(column)) for _, scores in board.rows)
        table.add_row(escape(visible(title)), *cells)
    return table


def legend(board: Scoreboard) -> list[str]:
    """The protocol, which evaluation is in which column, and what the mark at a score means."""
    named = [f"protocol: {visible(board.protocol)}"]
    named += [f"{number}: {visible(name)}" for number, (name, _) in enumerate(board.rows, start=1)]
    is_marked = any(score.is_partial for _, scores in board.rows for score in scores.values())
    return [*named, NOTE] if is_marked else named


def cell_of(score: Score | None) -> str:
    if score is None:
        return MISSING
    return percent(score.accuracy) + (PARTIAL if score.is_partial else "")


def scoreboard_csv(board: Scoreboard) -> str:
    """CSV with a row for each score of each evaluation; shares in [0, 1]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["evaluation", "protocol", "column", "accuracy", "standard_error", "is_partial"])
    for name, scores in board.rows:
        for column, score in scores.items():
            error = "" if score.standard_error is None else score.standard_error
            writer.writerow([visible(name), board.protocol, column, score.accuracy, error, score.is_partial])
    return text.getvalue()
