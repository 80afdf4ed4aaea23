"""From the columns in which a set is stored to `images`, `problem`, `answer`, `id` and `meta`."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from vgpo.answers import choice_letter
from vgpo.data.errors import DataError
from vgpo.data.faulty import DROP, ERROR, Fault, without_faulty
from vgpo.data.formats import COLUMNS, FORMATS, OPTIONS, PICTURES, PLAIN, Format, Row, RowError
from vgpo.data.progress import with_bar
from vgpo.data.schema import ANSWER, ID, IMAGES, META, PROBLEM, missing_columns, no_row, quantity
from vgpo.text import did_you_mean

OTHER_MEDIA = ("video", "videos", "audio", "audios")
_DEEPEST = 32  # types in one another in a column of meta; Arrow does not pass on more than 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSet:
    """A set in the columns in which it is stored, whose texts are read without its pictures.

    texts: the rows of these columns. pictures: these columns as one, `images`. binary: columns that hold bytes.
    is_json: whether they come from JSON files, which name images by their paths.
    """

    columns: list[str]
    num_rows: int
    texts: Callable[[list[str]], Iterable[Row]]
    pictures: Callable[[list[str]], datasets.Dataset]
    binary: frozenset[str] = frozenset()
    is_json: bool = False


def to_canonical(
    dataset: datasets.Dataset,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    faulty_rows: str = ERROR,
) -> datasets.Dataset:
    """`dataset` with the columns images, problem, answer, id (text) and, where it has more columns, meta.

    Images stay undecoded and where they are stored; texts are held in memory. A column of `meta` whose rows are of
    several types is text.
    name: a key of `FORMATS`; None recognises the format by its columns, and a log line says which it is.
    columns: the columns of the set that are read as others, as in {"answer": "ground_truth"}; see `stored_names`.
    faulty_rows: "drop" leaves out rows that cannot be read, after a warning that counts and names them; the others
    have their number in the source in a column `row`.
    DataError for no row, an unknown format or column, columns that the format lacks, or rows that it cannot read (the
    first ten).
    """
    return canonical_rows(stored(with_columns(dataset, columns)), name, faulty_rows)


def with_columns(dataset: datasets.Dataset, columns: Mapping[str, str] | None) -> datasets.Dataset:
    """`dataset` with columns under the names that `columns` gives them."""
    names = stored_names(dataset.column_names, columns)
    if list(names) == dataset.column_names:
        return dataset
    return dataset.select_columns(list(names.values())).rename_columns({old: new for new, old in names.items()})


def stored_names(found: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, str]:
    """For each column as it is read, its name in the set.

    columns: for a column that some format knows, the one of the set that is read as it. A column of the set that had
    that name before is not read.
    DataError for a name that no format knows, or that the set does not have.
    """
    columns = columns or {}
    faults = [
        f"columns: no data format has a column {name!r}{did_you_mean(name, COLUMNS)}; write {{column of the format: "
        "column of the set}, as in {answer: ground_truth}"
        for name in columns
        if name not in COLUMNS
    ]
    faults += [
        f"columns: there is no column {source!r}{did_you_mean(source, found)} to be read as {name!r}; the columns of "
        f"the set are {list(found)}"
        for name, source in columns.items()
        if source not in found and name in COLUMNS
    ]
    if faults:
        raise DataError("\n".join(faults))
    others = {name: name for name in found if name not in columns and name not in columns.values()}
    return {**others, **columns}


def stored(dataset: datasets.Dataset) -> StoredSet:
    """A data set in memory or in Arrow files, as it is."""
    kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
    return StoredSet(
        columns=dataset.column_names,
        num_rows=len(dataset),
        texts=dataset.select_columns,
        pictures=lambda names: _picture_column(dataset, names),
        binary=frozenset(name for name, kind in kinds.items() if "binary" in kind),
    )


def canonical_rows(rows: StoredSet, name: str | None, faulty_rows: str = ERROR) -> datasets.Dataset:
    """`rows` as `to_canonical` gives them."""
    read, faults = read_rows(rows, format_of(rows.columns, name), images=faulty_rows == DROP)
    kept = without_faulty(read, faults, faulty_rows, cannot="read")
    warn_of_options(kept)
    return kept


def read_rows(rows: StoredSet, name: str, *, images: bool = True) -> tuple[datasets.Dataset, list[Fault]]:
    """Every row in its place, with the columns of `to_canonical`, and what is wrong with rows that cannot be read.

    These have no problem, answer and id (None), but their images and `meta`.

    Args:
        rows: A set as it is stored.
        name: A key of `FORMATS`.
        images: Whether images are wanted even if there is a fault.

    Raises:
        DataError: No row, or columns that the format lacks.
    """
    if not rows.num_rows:
        raise no_row("the data set")
    found, layout = rows.columns, FORMATS[name]
    if missing := layout.missing(found):
        raise missing_columns(missing, found)
    pictures = layout.picture_columns(found)
    # Other images stay out of meta: bytes would be read with every row, and a path beside an image that is stored says
    # where it was, which is no part of the set.
    aside = {*pictures, *layout.images, *(rows.binary - (layout.taken() - set(PICTURES)))}
    # Videos are looked at even where they are stored as bytes.
    texts = [column for column in found if column not in aside or column in OTHER_MEDIA]
    read, faults = _read_texts(rows, texts, layout)
    if pictures and (images or not faults):
        read = datasets.concatenate_datasets([rows.pictures(pictures), read], axis=1)
    return read, faults


def format_of(found: list[str], name: str | None = None) -> str:
    """The key of `FORMATS` by which a set of these columns is read: `name`, or the first that fits them."""
    if name in FORMATS:
        return name
    if name is not None:
        raise DataError(
            f"there is no data format {name!r}{did_you_mean(name, FORMATS)}; the formats are {list(FORMATS)}. "
            "Name one, or leave it out to have it recognised by the columns"
        )
    for key, layout in FORMATS.items():
        if not layout.missing(found) and layout.picture_columns(found):
            if key != PLAIN:
                logger.warning("The data set is read as %r, recognised by its columns %s.", key, found)
            return key
    return PLAIN


def _picture_column(dataset: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    """The pictures as one column `images`: the stored one itself where there is one."""
    pictures = dataset.select_columns(columns)
    if len(columns) == 1:
        return pictures if columns == [IMAGES] else pictures.rename_column(columns[0], IMAGES)
    for column in columns:
        pictures = pictures.cast_column(column, datasets.Image(decode=False))
    return pictures.map(
        lambda row: {IMAGES: [row[column] for column in columns if row[column] is not None]},
        remove_columns=columns,
        features=datasets.Features({IMAGES: datasets.List(datasets.Image(decode=False))}),
        writer_batch_size=64,  # pictures held at once; the joined column is written to the disk
    )


def _read_texts(source: StoredSet, columns: list[str], layout: Format) -> tuple[datasets.Dataset, list[Fault]]:
    """The texts of all rows, without a value where a row cannot be read, and what is wrong with such rows."""
    extra = [column for column in columns if column not in {*layout.taken(), *OTHER_MEDIA}]
    rows: list[Row] = []
    meta: list[Row | None] = []
    faults: list[Fault] = []
    for number, row in with_bar(enumerate(source.texts(columns)), "Reading the rows", rows=source.num_rows):
        try:
            _check_media(row)
            rows.append({**layout.read(row), ID: layout.name(row)})
        except RowError as error:
            rows.append({PROBLEM: None, ANSWER: None, ID: None})
            faults.append(Fault(number, str(error)))
        meta.append({column: row[column] for column in extra})
    texts = {name: [row[name] for row in rows] for name in (PROBLEM, ANSWER)}
    texts[ID] = _identifiers([row[ID] for row in rows])
    table = pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})
    if extra:
        table = table.append_column(META, _records(meta, _DEEPEST))
    return datasets.Dataset(table), faults


def warn_of_options(rows: datasets.Dataset) -> None:
    """Whether answers are letters of options that are in `meta` and not in the problem."""
    if META not in rows.column_names:
        return
    fields = [field for field in (*OPTIONS, "option") if field in rows.features[META]]
    for field in fields:
        shown = rows.select_columns([PROBLEM, ANSWER, META])
        hidden = [number for number, row in enumerate(shown) if _hides_options(row, row[META][field])]
        if hidden:
            logger.warning(
                "%d of %s have a letter as answer, and options in the column %r that are not in the problem (the "
                "first is row %d): a model cannot know what the letter stands for. Set train_format or eval_format to "
                "'options', which adds them as lettered lines, or write them into the problem.",
                len(hidden), quantity(len(rows), "row"), field, hidden[0],
            )  # fmt: skip


def _hides_options(row: Row, options: Any) -> bool:
    if not options or choice_letter(row[ANSWER]) is None:
        return False
    texts = options if isinstance(options, list) else [options]
    return not all(str(text).strip() in row[PROBLEM] for text in texts)


def _check_media(row: Row) -> None:
    """A row has no video and no audio: these are never left out of a prompt without a word."""
    for name in OTHER_MEDIA:
        if row.get(name) not in (None, "", [], {}):
            kind = name.removesuffix("s")
            raise RowError(name, f"holds {kind}; only images are read. Drop the row, or the column if it is unused")


def _identifiers(names: list[Any]) -> list[str]:
    """The names of the rows, and for a row without one its number, told apart from a row that has it as its name."""
    given = {str(name) for name in names if name is not None}
    numbers = [f"row {number}" if str(number) in given else str(number) for number in range(len(names))]
    return [number if name is None else str(name) for name, number in zip(names, numbers, strict=True)]


def _records(values: list[Row | None], levels: int) -> pa.Array:
    """Records of `meta`, each of their fields typed by itself; levels: how deep they may be nested."""
    names = list(dict.fromkeys(name for value in values for name in value or ()))
    fields = [_typed([(value or {}).get(name) for value in values], levels) for name in names]
    return pa.StructArray.from_arrays(fields, names, mask=pa.array([value is None for value in values]))


def _typed(values: list[Any], levels: int) -> pa.Array:
    """A field of `meta`; as text, with other values in JSON, where no one type holds them all."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError):
        column = None
    if column is not None and _depth(column.type) <= levels:
        return column
    if levels > 0 and all(value is None or isinstance(value, dict) for value in values):
        return _records(values, levels - 1)
    return pa.array(map(_as_text, values), pa.string())


def _depth(kind: pa.DataType) -> int:
    """How many types there are inside one another."""
    depth, level = 0, [kind]
    while level:
        depth, level = depth + 1, [inner.field(index).type for inner in level for index in range(inner.num_fields)]
    return depth


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
