"""Loading a data set from a file, a folder or the hub, without running code that comes with it."""

import json
import os.path
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import datasets
import pyarrow as pa

from vgpo.data.errors import DataError
from vgpo.data.readers import PICTURES, to_canonical
from vgpo.data.schema import as_list, is_text, listed

_READERS = {
    ".parquet": datasets.Dataset.from_parquet,
    ".jsonl": datasets.Dataset.from_json,
    ".json": datasets.Dataset.from_json,
}
_DEFAULT_SPLIT = "train"
_SHARD = re.compile(r"(?:^|[-_.])\d+(?:-of-\d+(?:-[0-9a-f]+)?)?$")
_LEADS_OUT = (
    "the picture path {!r} leads out of the folder of the data file; move the picture into it, or write the absolute "
    "path if it is meant"
)
_HUB_NAME = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:/([\w .()-]+))?")


def load_dataset(source: str, split: str | None = None, format: str | None = None) -> datasets.Dataset:
    """The data set at `source` with the columns images, problem, answer, id and, where it has more, meta.

    `source` is a .parquet, .jsonl or .json file, a folder of parquet files or one written by `save_to_disk`, or a
    name on the hub, as `owner/name` or `owner/name/configuration`.

    `source` may end in `@split`; the default is train. In a folder, a file belongs to the split that it is named
    after (`test.parquet`, `test-00000-of-00002.parquet`); a file, and a folder whose files name no split, hold
    one set and take no split. Relative picture paths start from the folder of the file, or else from `source`, and
    must not lead out of it; absolute ones are taken as they are.
    format: how a row is written, a key of `vgpo.data.FORMATS`; None recognises it by the columns.
    Nothing is decoded, no address is fetched, and no code that comes with the data is run.
    DataError if it cannot be found or read, or has no such split or format.
    """
    return to_canonical(_load(source, split), format)


def _load(source: str, split: str | None) -> datasets.Dataset:
    name, split = name_and_split(source, split)
    path = Path(name).expanduser()
    if path.is_file():
        return _load_file(path, split)
    if path.is_dir():
        return _load_folder(path, split)
    hub = _HUB_NAME.fullmatch(name)
    if path.suffix in _READERS or hub is None:
        raise DataError(f"there is no file or folder {name!r} (looked at {path.absolute()}); correct the path")
    return _load_hub(hub.group(1), hub.group(2), split or _DEFAULT_SPLIT)


def name_and_split(source: str, split: str | None = None) -> tuple[str, str | None]:
    """What comes before and after the last `@` of a source; what exists under its whole name has no split in it."""
    if Path(source).expanduser().exists() or "@" not in source:
        return source, split
    name, _, named_split = source.rpartition("@")
    if split is not None and split != named_split:
        raise DataError(f"{source!r} names the split {named_split!r} but split is {split!r}; give one of the two")
    return name, named_split


def _load_file(path: Path, split: str | None) -> datasets.Dataset:
    if path.suffix not in _READERS:
        raise DataError(
            f"{path} has the unknown file type {path.suffix!r}; expected one of {sorted(_READERS)} or a folder"
        )
    if split not in (None, _DEFAULT_SPLIT, path.stem):
        raise DataError(f"{path} is one file and has no split {split!r}; leave the split out")
    return _read([path], path.parent)


def _load_folder(path: Path, split: str | None) -> datasets.Dataset:
    if (path / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(path))
        if (split or _DEFAULT_SPLIT) not in splits:
            raise _no_such_split(path, split or _DEFAULT_SPLIT, sorted(splits))
        return _anchor_paths(splits[split or _DEFAULT_SPLIT], path)
    if (path / "state.json").is_file():
        if split not in (None, _DEFAULT_SPLIT):
            raise DataError(f"{path} holds one data set and has no split {split!r}; leave the split out")
        return _anchor_paths(datasets.load_from_disk(str(path)), path)
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"the folder {path} holds no parquet file and no data set of save_to_disk; correct the path")
    return _read(_files_of_split(path, files, split), path)


def _files_of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    # data/train-00000-of-00002.parquet -> train; 0000.parquet -> "" (names no split); geometry3k -> geometry3k
    names = [_SHARD.sub("", file.stem) for file in files]
    chosen = [file for file, name in zip(files, names, strict=True) if name == (split or _DEFAULT_SPLIT)]
    if chosen:
        return chosen
    if split is None and len(set(names)) == 1:
        return files
    raise _no_such_split(folder, split or _DEFAULT_SPLIT, sorted(set(names) - {""}))


def _no_such_split(source: object, split: str, found: list[str]) -> DataError:
    return DataError(f"{source} has no split {split!r}; found {found}. Write {source}@SPLIT with one of them")


def _read(files: list[Path], folder: Path) -> datasets.Dataset:
    try:
        dataset = _READERS[files[0].suffix]([str(file) for file in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        reason = str(error.__cause__ or error) or "it holds no row"
        broken = None if files[0].suffix == ".parquet" else _broken_line(files[0])
        raise DataError(broken or f"cannot read {files[0]}: {reason}; write the file again") from error
    return _anchor_paths(dataset, files[0].parent, folder)


def _broken_line(file: Path) -> str | None:
    """What is wrong with the first line that is no row, for a file of one row a line."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith("["):
                return None
            try:
                row = json.loads(line or "{}") if line.strip() else {}
            except ValueError as error:
                return f"{file}, line {number}: no valid JSON ({error}); correct the line, or write one row a line"
            if not isinstance(row, dict):
                return f"{file}, line {number}: a {type(row).__name__}, expected {{column: value}}; correct the line"
    return None


def _anchor_paths(dataset: datasets.Dataset, *folders: Path) -> datasets.Dataset:
    """Make relative picture paths, in columns of texts, relative to the first of `folders` that has the file."""
    columns = [name for name in PICTURES if name in dataset.column_names and _holds_text(dataset, name)]
    if not columns:
        return dataset
    cells = dataset.select_columns(columns)
    if not any(_is_relative(path) for row in cells for column in columns for path in _paths(row[column])):
        return dataset
    faults: list[str] = []

    def anchor(row: dict[str, Any], number: int) -> dict[str, list[str | None]]:
        for column in columns:
            outside = [path for path in filter(_is_relative, _paths(row[column])) if _leads_out(path)]
            faults.extend(f"row {number}, field {column!r}: {_LEADS_OUT.format(path)}" for path in outside)
        return {
            column: [_anchored(path, folders) if _is_relative(path) else path for path in _paths(row[column])]
            for column in columns
        }

    features = datasets.Features({column: datasets.List(datasets.Value("string")) for column in columns})
    anchored = cells.map(anchor, with_indices=True, features=features, keep_in_memory=True)
    if faults:
        raise DataError(f"the data set in {folders[0]} cannot be used:\n{listed(faults)}")
    others = dataset.remove_columns(columns)
    return datasets.concatenate_datasets([others, anchored], axis=1) if others.column_names else anchored


def _leads_out(path: str) -> bool:
    return os.path.normpath(path).startswith("..")


def _anchored(path: str, folders: Sequence[Path]) -> str:
    return str(next((folder / path for folder in folders if (folder / path).is_file()), folders[0] / path))


def _holds_text(dataset: datasets.Dataset, column: str) -> bool:
    """Whether the cells are texts, lists of them, or {bytes, path} without a single picture's bytes."""
    kind = dataset.features.arrow_schema.field(column).type
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(kind):
        return is_text(kind)
    names = [kind.field(index).name for index in range(kind.num_fields)]
    return "path" in names and ("bytes" not in names or pa.types.is_null(kind.field("bytes").type))


def _paths(cell: Any) -> list[str | None]:
    return [image["path"] if isinstance(image, dict) else image for image in as_list(cell)]


def _is_relative(path: str | None) -> TypeGuard[str]:
    """Whether it is a path, and not an address or data URI, that starts from the folder of its file."""
    return path is not None and not path.startswith("data:") and "://" not in path and not Path(path).is_absolute()


def _load_hub(name: str, configuration: str | None, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, configuration, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"cannot load the split {split!r} of {name!r}, which is no local path, from the hub: {error}. Check the "
            "name, the configuration (owner/name/configuration), the split and the connection"
        ) from error
