"""Load a dataset from a file, a folder or the hub, without executing code that comes with it."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vgpo.data.errors import DataError
from vgpo.data.faulty import ERROR
from vgpo.data.files import check_files, check_regular, expanded, is_folder, status_of
from vgpo.data.formats import FORMAT_IMAGE_COLUMNS
from vgpo.data.json_rows import ROW_FILE, stored_json
from vgpo.data.readers import StoredSet, canonical_rows, stored, with_columns
from vgpo.data.schema import as_list, is_text, listed, no_row
from vgpo.places import DATA_FILES, LIKE_A_HUB_ID, dataset_missing, hub_dataset, missing

_JSON = (".json", ".jsonl")
_DEFAULT_SPLIT = "train"
_IMAGE_FOLDER, _DATA_FOLDER = "images", "data"
_SHARD = re.compile(r"(?:^|[-_.])\d+(?:-of-\d+(?:-[0-9a-f]+)?)?$")
_LEADS_OUT = (
    "the image path {!r} leads out of the folder of the data file; move the image into it, or write the absolute "
    "path if it is meant"
)
_SAVED_TYPES = (".json", ".arrow")  # of the files that `save_to_disk` writes


@dataclass(frozen=True)
class Reading:
    """How the rows of a dataset are read: `format`, `columns` and `faulty_rows` of `load_dataset`."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    faulty_rows: str = ERROR


AS_IT_IS = Reading()


def load_dataset(
    source: str,
    split: str | None = None,
    format: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    faulty_rows: str = ERROR,
) -> datasets.Dataset:
    """The dataset at `source` with the columns images, problem, answer, id and, for other columns, meta.

    `source` is a .parquet, .jsonl or .json file (one row per line, one list of rows, or `{id: row}`), a folder of
    parquet, .jsonl or .json files, a folder with one subfolder per row (`data.json` and its images), a folder written
    by `save_to_disk`, or a name on the hub, `owner/name` or `owner/name/configuration`.

    `source` may end in `@split`; the default is train. In a folder, a file belongs to the split in its name
    (`test.parquet`, `test-00000-of-00002.parquet`); a file, and a folder whose files name no split, contain one
    dataset and take no split. Relative image paths start from the folder of the file, from `images` in it, or else
    from `source`, and must not lead out of it, by `../` or by a link; absolute ones are used unchanged. All are
    absolute afterwards, so that the working directory may change.
    format: the row format, a key of `vgpo.data.FORMATS`; None detects it from the columns.
    columns: columns of the format and the dataset columns to read for them, as in {"answer": "ground_truth"}.
    faulty_rows: "error", or "drop", which skips rows that cannot be read, after a warning that counts and names them;
    see `to_canonical`.
    Nothing is decoded, no URL is fetched, and no code that comes with the data is executed.
    DataError if it cannot be found or read, or has no such split, format or column.
    """
    return canonical_rows(open_dataset(source, split, columns), format, faulty_rows)


def open_dataset(source: str, split: str | None = None, columns: Mapping[str, str] | None = None) -> StoredSet:
    """The dataset at `source` in its stored columns. Arguments and errors: see `load_dataset`."""
    name, split = name_and_split(source, split)
    path = expanded(name).absolute()
    status = status_of(path)
    if is_folder(path):
        return _load_folder(path, split, columns)
    if status is not None:
        check_regular(path, status)
        if status.st_size == 0:
            raise no_row(path)
        return _load_file(path, split, columns)
    hub = hub_dataset(name)
    if hub is None:
        raise DataError(dataset_missing(name))
    return stored(with_columns(_load_hub(*hub, split or _DEFAULT_SPLIT), columns))


def name_and_split(source: str, split: str | None = None) -> tuple[str, str | None]:
    """The parts before and after the last `@` of a source; a path that exists with the `@` in it names no split."""
    if "@" not in source or status_of(expanded(source)) is not None:
        return source, split
    name, _, named_split = source.rpartition("@")
    if split is not None and split != named_split:
        raise DataError(f"{source!r} names the split {named_split!r} but split is {split!r}; give one of the two")
    return name, named_split


def _load_file(path: Path, split: str | None, columns: Mapping[str, str] | None) -> StoredSet:
    if path.suffix not in DATA_FILES:
        raise DataError(
            f"{path} has the unknown file type {path.suffix!r}; expected one of {list(DATA_FILES)} or a folder"
        )
    if split not in (None, _DEFAULT_SPLIT, path.stem):
        raise DataError(f"{path} is one file and has no split {split!r}; leave the split out")
    if path.suffix in _JSON:
        return _from_json([path], (path.parent, path.parent / _IMAGE_FOLDER), columns)
    # In a hub repository, whose files are in data/, paths start from the repository.
    repository = (path.parents[1],) if path.parent.name == _DATA_FOLDER else ()
    return _from_dataset(_read_parquet([path]), (path.parent, *repository), columns)


def _load_folder(path: Path, split: str | None, columns: Mapping[str, str] | None) -> StoredSet:
    if os.path.lexists(path / "dataset_dict.json"):
        splits = _load_from_disk(path)
        if (split or _DEFAULT_SPLIT) not in splits:
            raise _no_such_split(path, split or _DEFAULT_SPLIT, sorted(splits))
        return _from_dataset(splits[split or _DEFAULT_SPLIT], (path,), columns)
    if os.path.lexists(path / "state.json"):
        if split not in (None, _DEFAULT_SPLIT):
            raise DataError(f"{path} contains one dataset and has no split {split!r}; leave the split out")
        return _from_dataset(_load_from_disk(path), (path,), columns)
    if files := sorted(file for file in path.rglob("*.parquet") if not is_folder(file)):
        chosen = _files_of_split(path, files, split)
        return _from_dataset(_read_parquet(chosen), (chosen[0].parent, path), columns)
    if rows := sorted(path.glob(f"*/{ROW_FILE}")):
        if split not in (None, _DEFAULT_SPLIT, path.name):
            raise DataError(f"{path} contains one dataset and has no split {split!r}; leave the split out")
        return _from_json(rows, (path,), columns)
    if files := sorted(file for file in path.iterdir() if file.suffix in _JSON):
        return _from_json(_files_of_split(path, files, split), (path, path / _IMAGE_FOLDER), columns)
    raise DataError(
        f"the folder {path} contains no parquet file, no JSON file and no dataset of save_to_disk; correct the path"
    )


def _from_dataset(dataset: datasets.Dataset, folders: Sequence[Path], columns: Mapping[str, str] | None) -> StoredSet:
    """folders: starting points of relative image paths."""
    return stored(_anchor_paths(with_columns(dataset, columns), *folders))


def _from_json(files: list[Path], folders: Sequence[Path], columns: Mapping[str, str] | None) -> StoredSet:
    check_files(files)
    rows = stored_json(files, columns)
    return replace(rows, images=lambda names: _anchor_paths(rows.images(names), *folders))


def _load_from_disk(folder: Path) -> Any:
    """The output of `save_to_disk`: a dataset, or one per split."""
    check_files([file for file in sorted(folder.rglob("*")) if file.suffix in _SAVED_TYPES])
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = "no rows were saved" if isinstance(error, IndexError) else error
        raise DataError(
            f"cannot read {folder}, which looks like a dataset of save_to_disk: {reason}; save it again"
        ) from error


def _files_of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    names = list(map(_split_name, files))
    chosen = [file for file, name in zip(files, names, strict=True) if name == (split or _DEFAULT_SPLIT)]
    if chosen:
        return chosen
    if split is None and len(set(names)) == 1:
        return files
    raise _no_such_split(folder, split or _DEFAULT_SPLIT, sorted(set(names) - {""}))


def splits_of(folder: Path) -> set[str]:
    """The splits of a folder of parquet or JSON files, or of `save_to_disk`, by the names of its files."""
    if os.path.lexists(folder / "dataset_dict.json"):
        return {place.parent.name for place in folder.glob("*/state.json")}
    files = list(folder.rglob("*.parquet")) or [file for file in folder.iterdir() if file.suffix in _JSON]
    return {_split_name(file) for file in files}


def _split_name(file: Path) -> str:
    """data/train-00000-of-00002.parquet -> train; 0000.parquet -> "" (names no split); geometry3k -> geometry3k."""
    return _SHARD.sub("", file.stem)


def _no_such_split(source: object, split: str, found: list[str]) -> DataError:
    return DataError(f"{source} has no split {split!r}; found {found}. Write {source}@SPLIT with one of them")


def _read_parquet(files: list[Path]) -> datasets.Dataset:
    check_files(files)
    # A name may contain [, * or ?, which would be read as a pattern and match another file.
    patterns = [glob.escape(str(file)) for file in _with_rows(files)]
    try:
        return datasets.Dataset.from_parquet(patterns)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        read = str(files[0]) if len(files) == 1 else f"the {len(files)} files from {files[0]} to {files[-1]}"
        raise DataError(f"cannot read {read}: {error.__cause__ or error}; re-create the dataset") from error


def _with_rows(files: list[Path]) -> list[Path]:
    """The parquet files with at least one row. DataError if there is none, or one cannot be opened or joined."""
    found = []
    columns: list[str] | None = None
    for file in files:
        try:
            head = pq.read_metadata(file)
            names = sorted(head.schema.to_arrow_schema().names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {file}: {error}; re-create the file") from error
        columns = columns or names
        if names != columns:
            raise DataError(
                f"cannot read {file}: its columns are {names}, but those of {files[0]} are {columns}; the files of "
                "one dataset need the same columns"
            )
        found += [file] if head.num_rows else []
    if not found:
        raise no_row(files[0])
    return found


def _anchor_paths(dataset: datasets.Dataset, *folders: Path) -> datasets.Dataset:
    """Resolve relative image paths in text columns against the first of `folders` that has the file."""
    found = [name for name in FORMAT_IMAGE_COLUMNS if name in dataset.column_names]
    columns = [name for name in found if _holds_text(dataset, name)]
    faults = [fault for name in found if name not in columns for fault in _stored_faults(dataset, name)]
    if faults:
        raise DataError(f"the dataset in {folders[0]} cannot be used:\n{listed(faults)}")
    if not columns:
        return dataset
    cells = dataset.select_columns(columns)
    if not any(_is_relative(path) for row in cells for column in columns for path in _paths(row[column])):
        return dataset
    links = _Links(folders)

    def placed(path: str | None, where: str) -> str | None:
        if not _is_relative(path):
            return path
        place = _anchored(path, folders)
        if os.path.normpath(path).startswith("..") or links.lead_out(place):
            faults.append(f"{where}: {_LEADS_OUT.format(path)}")
        return place

    def anchor(row: dict[str, Any], number: int) -> dict[str, list[str | None]]:
        return {
            column: [placed(path, f"row {number}, field {column!r}") for path in _paths(row[column])]
            for column in columns
        }

    features = datasets.Features({column: datasets.List(datasets.Value("string")) for column in columns})
    anchored = cells.map(anchor, with_indices=True, features=features, keep_in_memory=True)
    if faults:
        raise DataError(f"the dataset in {folders[0]} cannot be used:\n{listed(faults)}")
    others = dataset.remove_columns(columns)
    return datasets.concatenate_datasets([others, anchored], axis=1) if others.column_names else anchored


class _Links:
    """Tests whether a path leads out of some folders once its links are followed.

    Links into the `blobs` of the hub's cache stay inside: a file there is a link from `snapshots/REVISION` to
    `blobs/HASH` of the same repository.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        # A folder below another one may itself be a link that leads out.
        outermost = [folder for folder in folders if not set(folder.parents) & set(folders)]
        real = [Path(os.path.realpath(folder)) for folder in outermost]
        blobs = [place.parents[1] / "blobs" for inner in real for place in _snapshots(inner)]
        self._inside = tuple(str(place).rstrip(os.sep) + os.sep for place in (*real, *blobs))

    def lead_out(self, path: str) -> bool:
        # A path with a NUL is invalid; the check of the dataset reports it with its row.
        return "\0" not in path and not os.path.realpath(path).startswith(self._inside)


def _snapshots(folder: Path) -> list[Path]:
    """The revision folder in the hub's cache that is, or contains, `folder`."""
    return [place for place in (folder, *folder.parents) if place.parent.name == "snapshots"]


def _anchored(path: str, folders: Sequence[Path]) -> str:
    return str(next((folder / path for folder in folders if os.path.lexists(folder / path)), folders[0] / path))


def _holds_text(dataset: datasets.Dataset, column: str) -> bool:
    """Whether the cells are texts, lists of them, or {bytes, path} without bytes in any row."""
    kind = dataset.features.arrow_schema.field(column).type
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(kind):
        return is_text(kind)
    names = [kind.field(index).name for index in range(kind.num_fields)]
    return "path" in names and ("bytes" not in names or pa.types.is_null(kind.field("bytes").type))


def _stored_faults(dataset: datasets.Dataset, column: str) -> list[str]:
    """Faults for relative paths without bytes in a column of bytes: they would start from the working directory."""
    faults, first = [], 0
    for cells in dataset.data.column(column).chunks:
        is_list = pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)
        images = pc.list_flatten(cells) if is_list else cells
        rows = pc.list_parent_indices(cells).to_pylist() if is_list else range(len(cells))
        names = [field.name for field in images.type] if pa.types.is_struct(images.type) else []
        if {"bytes", "path"} <= set(names):
            stored_bytes = pc.is_valid(pc.struct_field(images, "bytes")).to_pylist()  # reads no bytes
            paths = pc.struct_field(images, "path").to_pylist()
            faults += [
                f"row {first + row}, field {column!r}: the image path {path!r} is relative and has no bytes, in a "
                "column that stores them; write the absolute path, or store the bytes"
                for row, path, has_bytes in zip(rows, paths, stored_bytes, strict=True)
                if not has_bytes and _is_relative(path)
            ]
        first += len(cells)
    return faults


def _paths(cell: Any) -> list[str | None]:
    return [image["path"] if isinstance(image, dict) else image for image in as_list(cell)]


def _is_relative(path: str | None) -> TypeGuard[str]:
    """Whether it is a relative path, and not a URL or data URI."""
    return path is not None and not path.startswith("data:") and "://" not in path and not Path(path).is_absolute()


def _load_hub(name: str, configuration: str | None, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, configuration, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{missing(name, 'file or folder')}, and the hub: cannot load the split {split!r} of {name!r}: {error}. "
            f"Correct the path, or the hub id ({LIKE_A_HUB_ID}), the configuration (owner/name/configuration), the "
            "split or the connection"
        ) from error
