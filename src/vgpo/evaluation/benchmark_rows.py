"""Load the rows of a benchmark, from the hub or from files, in any of its published forms."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from vgpo.data import DataError, Reading
from vgpo.data.check import find_faults
from vgpo.data.faulty import DROP, Fault, without_faulty
from vgpo.data.files import expanded, is_folder, status_of
from vgpo.data.formats import decimal_places
from vgpo.data.readers import StoredSet, format_of, read_rows, warn_of_options
from vgpo.data.schema import ANSWER, ID, META, PROBLEM, ROW, source_rows
from vgpo.data.sources import name_and_split, open_dataset, splits_of
from vgpo.evaluation.answers import Question
from vgpo.evaluation.benchmarks import BENCHMARKS, Benchmark
from vgpo.options import lettered_options

HUB, REPO, PAPO = "hub", "repo", "papo"

DROPPING = Reading(faulty_rows=DROP)

_TASK = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # allowed in a file name
_FILE_TYPES = (".parquet", ".jsonl", ".json")
_PAPO_FORMAT = "sharegpt"
_BOX = "boxed"  # part of every instruction about the answer format

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkRows:
    """The rows of a benchmark that can be asked, and those that were dropped.

    Attributes:
        benchmark: Which one.
        source: Their source, as `vgpo.data.load_dataset` takes it.
        form: `HUB` (the original set on the hub, or parquet of its columns), `REPO` (the authors' JSON files) or
            `PAPO` (PAPO-Eval's messages, or others whose question contains the instruction for a box, so that no
            prompt template should add another).
        dataset: One row per question, in order, with the columns `images` (undecoded), `problem`, `answer`, `id`,
            `row` (number in the source) and, where the source has more columns, `meta`.
        questions: The same without images.
        num_rows: Rows in the source that belong to the benchmark, including those that were dropped or are beyond the
        limit.
        dropped: One fault for each row to be asked that cannot be used.
    """

    benchmark: Benchmark
    source: str
    form: str
    dataset: datasets.Dataset
    questions: list[Question]
    num_rows: int
    dropped: list[Fault]


def load_benchmark(
    benchmark: Benchmark,
    source: str | None = None,
    *,
    reading: Reading = DROPPING,
    limit: int | None = None,
    template: str = "plain",
    forbidden: Sequence[str] = (),
) -> BenchmarkRows:
    """The checked rows of a benchmark. Images are decoded once, a few at a time, and stay where they are stored.

    Args:
        benchmark: Which one.
        source: As in `source_of`; None is the original set on the hub.
        reading: How rows are read; `format` and `columns` are for a benchmark without public data. `faulty_rows`:
            "drop" leaves out rows that cannot be used, after a warning; "error" raises for them.
        limit: Use only the first `limit` rows, at least 1; dropped ones are not replaced.
        template: Prompt template for the check of the rows, as in `vgpo.data.to_prompts`.
        forbidden: Control tokens that no problem may contain, as in `vgpo.data.check_dataset`.

    Raises:
        DataError: No such source, no row of the benchmark in it, a missing column, faulty rows with "error", or only
        faulty rows.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected at least 1 row")
    source = located(benchmark, source if source is not None else _original(benchmark))
    stored = open_dataset(source, columns=reading.columns)
    name = format_of(stored.columns, reading.format)
    rows, faults = read_rows(stored, benchmark.read_as.get(name, name))
    form = _form(stored, name, rows)
    rows = rows.add_column(ROW, list(range(len(rows))))
    if form != PAPO and benchmark.select:
        rows = _selected(benchmark, source, rows)
    num_rows = len(rows)
    _warn_of_number(benchmark, source, num_rows, form)
    rows = rows if limit is None else rows.select(range(min(limit, num_rows)))
    checked = find_faults(rows.remove_columns(ID), template=template, forbidden=forbidden)
    # A few rows may have no image.
    checked = (fault for fault in checked if fault.row is not None or limit is None)
    dropped = _one_a_row(rows, [*faults, *checked])
    kept = without_faulty(rows, dropped, reading.faulty_rows, cannot="used")
    warn_of_options(kept)
    return BenchmarkRows(benchmark, source, form, kept, _questions(benchmark, kept), num_rows, dropped)


def source_of(benchmark: Benchmark, data: str | Sequence[str] | Mapping[str, str] = ()) -> str:
    """The source of a benchmark's rows, from the options `--data`; by default, the original dataset on the hub.

    Args:
        benchmark: Which one.
        data: Options of the form `TASK=SOURCE`, with a source as in `vgpo.data.load_dataset` (a task that is not in
        `BENCHMARKS` is user-defined), or `FOLDER`, which is searched for the task; also a single option, or `{task:
        source}`. `TASK=SOURCE` takes priority, and the last of several options wins.

    Raises:
        DataError: An unknown task, a missing folder or one without data of the task, or no option for a task without
        public data.
    """
    named, folders = data_options(data)
    if benchmark.name in named:
        return named[benchmark.name]
    if folders:
        return _found_in(benchmark, folders[-1])
    return _original(benchmark)


def with_data(benchmarks: Iterable[Benchmark], data: str | Sequence[str] | Mapping[str, str] = ()) -> list[Benchmark]:
    """The benchmarks of a suite for which data are available.

    A benchmark without public data for which none are given is skipped with a warning.

    Args:
        benchmarks: Of a suite.
        data: As in `source_of`.
    """
    kept = []
    for benchmark in benchmarks:
        if benchmark.original is None and not _is_given(benchmark, data):
            logger.warning(
                "%s is skipped: it has no public data, and none are given (--data %s=SOURCE). Averages exclude it.",
                benchmark.title, benchmark.name,
            )  # fmt: skip
        else:
            kept.append(benchmark)
    return kept


def _is_given(benchmark: Benchmark, data: str | Sequence[str] | Mapping[str, str]) -> bool:
    try:
        source_of(benchmark, data)
    except DataError:
        return False
    return True


def located(benchmark: Benchmark, source: str) -> str:
    """A source with configuration and split added if it is a folder that has them and names none.

    A local path becomes absolute, because it is read again from other working directories.
    """
    name, named_split = name_and_split(source)
    path = expanded(name)
    if status_of(path) is not None:
        source = f"{path.absolute()}" if named_split is None else f"{path.absolute()}@{named_split}"
    if named_split is not None or not is_folder(path) or benchmark.original is None:
        return source
    folder = path.absolute()
    hub_name, split = name_and_split(benchmark.original)
    configuration = folder / "/".join(hub_name.split("/")[2:])
    folder = configuration if is_folder(configuration) else folder
    splits = splits_of(folder)
    found = next((name for name in (split, benchmark.papo_split) if name in splits), None)
    return str(folder) if found is None else f"{folder}@{found}"


def data_options(data: str | Sequence[str] | Mapping[str, str]) -> tuple[dict[str, str], list[Path]]:
    """The sources by task, and the folders; arguments and errors as in `source_of`."""
    if isinstance(data, Mapping):
        data = [f"{task}={source}" for task, source in data.items()]
    named: dict[str, str] = {}
    folders: list[Path] = []
    for option in [data] if isinstance(data, str) else data:
        task, equals, source = option.partition("=")
        path = expanded(option)
        if is_folder(path) and task not in BENCHMARKS:
            folders.append(path)
        elif equals and source and _TASK.fullmatch(task):
            named[task] = source
        else:
            raise DataError(
                f"--data {option}: there is no folder {str(path)!r}; name a folder with the data of the tasks, or "
                "write TASK=SOURCE"
            )
    return named, folders


def _original(benchmark: Benchmark) -> str:
    if benchmark.original is None:
        raise DataError(
            f"{benchmark.title} has no public data. Pass your own by --data {benchmark.name}=SOURCE: a file or folder "
            "whose rows have the columns problem (or question), answer, and images (or image)"
        )
    return benchmark.original


def _found_in(benchmark: Benchmark, folder: Path) -> str:
    """The source of a benchmark in a folder with several."""
    candidates = [*_places(folder, benchmark.name), *_papo_places(benchmark, folder)]
    if benchmark.part_of is not None:
        candidates += _places(folder, benchmark.part_of)
    for place, source in candidates:
        if any(place.parent.glob(place.name)):
            return source
    looked_for = "\n".join(f"  {place}" for place, _ in candidates)
    raise DataError(
        f"there are no data of {benchmark.title} in {folder}; looked for\n{looked_for}\nAdd one of them, or "
        f"write --data {benchmark.name}=SOURCE"
    )


def _places(folder: Path, name: str) -> list[tuple[Path, str]]:
    """Possible locations of a task's rows (the name may be a pattern), each with its source."""
    paths = [folder / name, *(folder / f"{name}{suffix}" for suffix in _FILE_TYPES)]
    return [(path, str(path)) for path in paths]


def _papo_places(benchmark: Benchmark, folder: Path) -> list[tuple[Path, str]]:
    if benchmark.papo_split is None:
        return []
    names = (f"{benchmark.papo_split}-*.parquet", f"{benchmark.papo_split}.parquet")
    places = [place / name for place in (folder / "data", folder) for name in names]
    return [(place, f"{folder}@{benchmark.papo_split}") for place in places]


def _form(stored: StoredSet, name: str, rows: datasets.Dataset) -> str:
    if name == _PAPO_FORMAT and _BOX in (rows[0][PROBLEM] or ""):
        return PAPO
    return REPO if stored.is_json else HUB


def _selected(benchmark: Benchmark, source: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows that belong to the benchmark. DataError if a field is missing, or if there is none."""
    found = rows.features[META] if META in rows.column_names else {}
    for field in benchmark.select:
        if field not in found:
            raise DataError(
                f"{source} has no column {field!r}, by which the rows of {benchmark.title} are selected; expected the "
                f"columns of {benchmark.original}, or PAPO-Eval's split {benchmark.papo_split!r}"
            )
    metas = rows.select_columns([META])[META]
    chosen = [
        number
        for number, meta in enumerate(metas)
        if all(meta[field] in values for field, values in benchmark.select.items())
    ]
    if not chosen:
        expected = "; ".join(f"{field} {' or '.join(values)}" for field, values in benchmark.select.items())
        raise DataError(f"none of the {len(rows)} rows of {source} belongs to {benchmark.title}; expected {expected}")
    return rows.select(chosen)


def _warn_of_number(benchmark: Benchmark, source: str, num_rows: int, form: str) -> None:
    expected = benchmark.expected_rows(papo=form == PAPO)
    if expected not in (None, num_rows):
        logger.warning(
            "%s has %d rows of %s, expected %d: scores are not those of the complete benchmark.",
            source, num_rows, benchmark.title, expected,
        )  # fmt: skip


def _one_a_row(rows: datasets.Dataset, faults: list[Fault]) -> list[Fault]:
    """The first fault of each selected row, in row order."""
    numbers = {None, *source_rows(rows)}
    first: dict[int | None, Fault] = {}
    for fault in faults:
        if fault.row in numbers:
            first.setdefault(fault.row, fault)
    return sorted(first.values(), key=lambda fault: -1 if fault.row is None else fault.row)


def _questions(benchmark: Benchmark, rows: datasets.Dataset) -> list[Question]:
    columns = [name for name in (PROBLEM, ANSWER, ID, META, ROW) if name in rows.column_names]
    return [_question(benchmark, row) for row in rows.select_columns(columns)]


def _question(benchmark: Benchmark, row: Mapping[str, Any]) -> Question:
    meta = row.get(META) or {}
    return Question(
        row=row[ROW],
        id=row[ID],
        problem=row[PROBLEM],
        answer=row[ANSWER],
        options=lettered_options(row[PROBLEM]),
        precision=decimal_places(_value(meta, benchmark.precision)),
        category=_text(_value(meta, benchmark.category)),
        cluster=_text(_value(meta, benchmark.cluster)),
    )


def _value(meta: Mapping[str, Any], field: str | None) -> Any:
    """The value of a field of `meta`, `record.field` for a nested one; None if it is missing or NaN."""
    value: Any = meta
    for name in field.split(".") if field is not None else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    is_nan = isinstance(value, float) and math.isnan(value)  # pandas' null
    return None if field is None or is_nan else value


def _text(value: Any) -> str | None:
    """A category as text: several are joined, and an empty text becomes None."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return None if value is None or value == "" else str(value)
