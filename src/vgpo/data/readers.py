"""Convert the stored columns of a dataset to `images`, `problem`, `answer`, `id` and `meta`."""

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
from vgpo.data.formats import COLUMNS, FORMAT_IMAGE_COLUMNS, FORMATS, OPTIONS, PLAIN, Format, Row, RowError
from vgpo.data.progress import with_bar
from vgpo.data.schema import ANSWER, ID, IMAGES, META, PROBLEM, missing_columns, no_row, quantity
from vgpo.text import did_you_mean

OTHER_MEDIA = ("video", "videos", "audio", "audios")
_DEEPEST = 32  # nested types in a column of meta; Arrow does not support more than 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSet:
    """A dataset in its stored columns, whose texts are read without its images.

    texts: the rows of these columns. images: these columns merged into one, `images`. binary: columns of bytes.
    is_json: whether the data are JSON files, in which images are paths.
    """

    columns: list[str]
    num_rows: int
    texts: Callable[[list[str]], Iterable[Row]]
    images: Callable[[list[str]], datasets.Dataset]
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

    Images stay undecoded and where they are stored; texts are kept in memory. A column of `meta` with mixed types
    becomes text.
    name: a key of `FORMATS`; None detects the format from its columns and logs it.
    columns: columns of the format and the dataset columns to read for them, as in {"answer": "ground_truth"}; see
    `stored_names`.
    faulty_rows: "drop" skips rows that cannot be read, after a warning that counts and names them; the others have
    their number in the source in a column `row`.
    DataError for no row, an unknown format or column, missing columns,
    or rows that cannot be read (the first ten).
    """
    return canonical_rows(stored(with_columns(dataset, columns)), name, faulty_rows)


def with_columns(dataset: datasets.Dataset, columns: Mapping[str, str] | None) -> datasets.Dataset:
    """`dataset` with its columns renamed as in `columns`."""
    names = stored_names(dataset.column_names, columns)
    if list(names) == dataset.column_names:
        return dataset
    return dataset.select_columns(list(names.values())).rename_columns({old: new for new, old in names.items()})


def stored_names(found: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, str]:
    """For each column as it is read, its name in the dataset.

    columns: for a column of some format, the dataset column to read instead. A dataset column that already had that
    name is not read. DataError for a name that no format knows, or that the dataset does not have.
    """
    columns = columns or {}
    faults = [
        f"columns: no data format has a column {name!r}{did_you_mean(name, COLUMNS)}; write {{column of the format: "
        "column of the dataset}, as in {answer: ground_truth}"
        for name in columns
        if name not in COLUMNS
    ]
    faults += [
        f"columns: there is no column {source!r}{did_you_mean(source, found)} to be read as {name!r}; the columns of "
        f"the dataset are {list(found)}"
        for name, source in columns.items()
        if source not in found and name in COLUMNS
    ]
    if faults:
        raise DataError("\n".join(faults))
    others = {name: name for name in found if name not in columns and name not in columns.values()}
    return {**others, **columns}


def stored(dataset: datasets.Dataset) -> StoredSet:
    """A dataset in memory or in Arrow files, unchanged."""
    kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
    return StoredSet(
        columns=dataset.column_names,
        num_rows=len(dataset),
        texts=dataset.select_columns,
        images=lambda names: _image_column(dataset, names),
        binary=frozenset(name for name, kind in kinds.items() if "binary" in kind),
    )


def canonical_rows(rows: StoredSet, name: str | None, faulty_rows: str = ERROR) -> datasets.Dataset:
    """`rows` as `to_canonical` returns them."""
    read, faults = read_rows(rows, format_of(rows.columns, name), images=faulty_rows == DROP)
    kept = without_faulty(read, faults, faulty_rows, cannot="read")
    warn_of_options(kept)
    return kept


def read_rows(rows: StoredSet, name: str, *, images: bool = True) -> tuple[datasets.Dataset, list[Fault]]:
    """All rows in order, with the columns of `to_canonical`, and the faults of rows that cannot be read.

    Faulty rows have None as problem, answer and id, and keep their images and `meta`.

    Args:
        rows: A dataset as it is stored.
        name: A key of `FORMATS`.
        images: Read the images even if there is a fault.

    Raises:
        DataError: No row, or a column of the format is missing.
    """
    if not rows.num_rows:
        raise no_row("the dataset")
    found, layout = rows.columns, FORMATS[name]
    if missing := layout.missing(found):
        raise missing_columns(missing, found)
    image_columns = layout.image_columns(found)
    # Other images are not put into meta: bytes would be read with every row, and the path of an embedded image only
    # says where it came from.
    aside = {*image_columns, *layout.images, *(rows.binary - (layout.taken() - set(FORMAT_IMAGE_COLUMNS)))}
    # Videos are checked even if they are stored as bytes.
    texts = [column for column in found if column not in aside or column in OTHER_MEDIA]
    read, faults = _read_texts(rows, texts, layout)
    if image_columns and (images or not faults):
        read = datasets.concatenate_datasets([rows.images(image_columns), read], axis=1)
    return read, faults


def format_of(found: list[str], name: str | None = None) -> str:
    """The key of `FORMATS` for a dataset with these columns: `name`, or the first that matches."""
    if name in FORMATS:
        return name
    if name is not None:
        raise DataError(
            f"there is no data format {name!r}{did_you_mean(name, FORMATS)}; the formats are {list(FORMATS)}. "
            "Name one, or leave it out to detect it from the columns"
        )
    for key, layout in FORMATS.items():
        if not layout.missing(found) and layout.image_columns(found):
            if key != PLAIN:
                logger.warning("The dataset is read as %r, detected from its columns %s.", key, found)
            return key
    return PLAIN


def _image_column(dataset: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    """The images as one column `images`; a single stored column is used as it is."""
    images = dataset.select_columns(columns)
    if len(columns) == 1:
        return images if columns == [IMAGES] else images.rename_column(columns[0], IMAGES)
    for column in columns:
        images = images.cast_column(column, datasets.Image(decode=False))
    return images.map(
        lambda row: {IMAGES: [row[column] for column in columns if row[column] is not None]},
        remove_columns=columns,
        features=datasets.Features({IMAGES: datasets.List(datasets.Image(decode=False))}),
        writer_batch_size=64,  # images in memory at once; the joined column is written to disk
    )


def _read_texts(source: StoredSet, columns: list[str], layout: Format) -> tuple[datasets.Dataset, list[Fault]]:
    """The texts of all rows, None for a row that cannot be read, and the faults of such rows."""
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
    """Whether answers are letters of options that are stored in `meta` and not in the problem."""
    if META not in rows.column_names:
        return
    fields = [field for field in (*OPTIONS, "option") if field in rows.features[META]]
    for field in fields:
        shown = rows.select_columns([PROBLEM, ANSWER, META])
        hidden = [number for number, row in enumerate(shown) if _hides_options(row, row[META][field])]
        if hidden:
            logger.warning(
                "%d of %s have a letter as answer and options in the column %r that are not in the problem (the "
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
    """Raise RowError for a video or audio: these are never dropped from a prompt silently."""
    for name in OTHER_MEDIA:
        if row.get(name) not in (None, "", [], {}):
            kind = name.removesuffix("s")
            raise RowError(name, f"contains {kind}; only images are read. Drop the row, or the column if it is unused")


def _identifiers(names: list[Any]) -> list[str]:
    """The names of the rows. A row without a name gets its number, or `row NUMBER` if that is another row's name."""
    given = {str(name) for name in names if name is not None}
    numbers = [f"row {number}" if str(number) in given else str(number) for number in range(len(names))]
    return [number if name is None else str(name) for name, number in zip(names, numbers, strict=True)]


def _records(values: list[Row | None], levels: int) -> pa.Array:
    """Records of `meta`, each field with its own type; levels: how deeply they may be nested."""
    names = list(dict.fromkeys(name for value in values for name in value or ()))
    fields = [_typed([(value or {}).get(name) for value in values], levels) for name in names]
    return pa.StructArray.from_arrays(fields, names, mask=pa.array([value is None for value in values]))


def _typed(values: list[Any], levels: int) -> pa.Array:
    """A field of `meta`; values of mixed types become text, in JSON."""
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
    """The nesting depth of a type."""
    depth, level = 0, [kind]
    while level:
        depth, level = depth + 1, [inner.field(index).type for inner in level for index in range(inner.num_fields)]
    return depth


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
