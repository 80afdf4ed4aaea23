"""Benchmark scores of a study's runs: rows for a file, and a table of benchmarks by methods per setting."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vgpo.evaluation.tables import MISSING, percent
from vgpo.run.storage import write_file
from vgpo.study.folder import StudyRun
from vgpo.study.outputs import rows_as_csv, terminal_table
from vgpo.study.results import RunKey
from vgpo.suite.scoreboard import NOTE, PARTIAL, Score, Scoreboard, read_scoreboard
from vgpo.text import visible

FILE = "benchmarks.csv"
ERROR_NOTE = "±: standard error of the mean over seeds"


def write_benchmarks(out: Path, places: Sequence[RunKey]) -> tuple[dict[str, Path], list[Table | Text]]:
    """Write the scores of those runs that have some.

    Returns:
        What each file is -> its path, and what a terminal shows; both empty without scores.

    Raises:
        EvaluationError: Two runs have different protocols.
        RunFolderError: A file is broken, or writing failed.
    """
    evaluated = [place for place in places if StudyRun(place.path).evaluation.scores_path.is_file()]
    if not evaluated:
        return {}, []
    board = read_scoreboard([StudyRun(place.path).evaluation for place in evaluated])
    write_file(out / FILE, rows_as_csv(benchmark_rows(board, evaluated)).encode("utf-8"))
    return {"scores on benchmarks": out / FILE}, benchmark_tables(board, evaluated)


def benchmark_rows(board: Scoreboard, places: Sequence[RunKey]) -> list[dict[str, Any]]:
    """A flat dict for each score of each run; shares in [0, 1]."""
    return [
        {
            **{"setting": place.setting, "method": place.method, "seed": place.seed, "column": column},
            **{name: getattr(scores[column], name) for name in Score.model_fields},
        }
        for place, (_, scores) in zip(places, board.rows, strict=True)
        for column in board.titles
        if column in scores
    ]


def benchmark_tables(board: Scoreboard, places: Sequence[RunKey]) -> list[Table | Text]:
    """For each setting a row for each benchmark and average, a column for each method; then what the marks mean."""
    settings: dict[str, dict[str, list[Mapping[str, Score]]]] = {}
    for place, (_, scores) in zip(places, board.rows, strict=True):
        settings.setdefault(place.setting, {}).setdefault(place.method, []).append(scores)
    found: list[Table | Text] = []
    for setting, methods in settings.items():
        rows = [["seeds", *(str(len(runs)) for runs in methods.values())]]
        for column, title in board.titles.items():
            rows.append([title, *(mean_of([scores.get(column) for scores in runs]) for runs in methods.values())])
        found.append(terminal_table(f"{setting}: benchmarks", ["accuracy, %", *methods], rows))
    notes = [f"Protocol: {visible(board.protocol)}"]
    if any(len(runs) > 1 for methods in settings.values() for runs in methods.values()):
        notes.append(ERROR_NOTE)
    if any(score.is_partial for _, scores in board.rows for score in scores.values()):
        notes.append(NOTE)
    return [*found, Text("\n".join(notes))]


def mean_of(scores: Sequence[Score | None]) -> str:
    """Mean over seeds in percent, with its standard error where there are several; partial if one of them is."""
    known = [score for score in scores if score is not None]
    if not known:
        return MISSING
    values = [score.accuracy for score in known]
    mark = PARTIAL if any(score.is_partial for score in known) else ""
    text = percent(statistics.fmean(values))
    if len(values) > 1:
        text += f" ± {percent(statistics.stdev(values) / math.sqrt(len(values)))}"
    return text + mark
