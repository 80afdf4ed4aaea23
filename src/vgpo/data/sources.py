"""Loading a data set from a file, a folder or the hub, without running code that comes with it."""

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from vgpo.data.errors import DataError
from vgpo.data.schema import IMAGES, as_list, is_text

_READERS = {
    ".parquet": datasets.Dataset.from_parquet,
    ".jsonl": datasets.Dataset.from_json,
    ".json": datasets.Dataset.from_json,
}
_DEFAULT_SPLIT = "train"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")


def load_dataset(source: str, split: str | None = None) -> datasets.Dataset:
    """The data set at `source`: a .parquet, .jsonl or .json file, a folder of parquet files or one written by
    `save_to_disk`, or a name on the hub.

    `source` may end in `@split`; the default is train. In a folder, a file belongs to the split that it is named
    after (`test.parquet`, `test-00000-of-00002.parquet`); a file, and a folder whose files name no split, hold
    one set and take no split. Relative picture paths in a file are taken from the file's folder.
    DataError if it cannot be found or read, or has no such split.
    """
    name, split = _parse(source, split)
    path = Path(name).expanduser()
    if path.is_file():
        return _load_file(path, split)
    if path.is_dir():
        return _load_folder(path, split)
    if path.suffix in _READERS or not _HUB_NAME.fullmatch(name):
        raise DataError(f"there is no file or folder {name!r} (looked at {path.absolute()}); correct the path")
    return _load_hub(name, split or _DEFAULT_SPLIT)


def _parse(source: str, split: str | None) -> tuple[str, str | None]:
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
    return _read([path])


def _load_folder(path: Path, split: str | None) -> datasets.Dataset:
    if (path / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(path))
        if (split or _DEFAULT_SPLIT) not in splits:
            raise _no_such_split(path, split or _DEFAULT_SPLIT, sorted(splits))
        return splits[split or _DEFAULT_SPLIT]
    if (path / "state.json").is_file():
        if split not in (None, _DEFAULT_SPLIT):
            raise DataError(f"{path} holds one data set and has no split {split!r}; leave the split out")
        return datasets.load_from_disk(str(path))
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"the folder {path} holds no parquet file and no data set of save_to_disk; correct the path")
    return _read(_files_of_split(path, files, split))


def _files_of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    # data/train-00000-of-00002.parquet -> train; 0000.parquet -> "" (names no split)
    names = [re.split(r"[-_.]?\d", file.stem, maxsplit=1)[0] for file in files]
    chosen = [file for file, name in zip(files, names, strict=True) if name == (split or _DEFAULT_SPLIT)]
    if chosen:
        return chosen
    if split is None and len(set(names)) == 1:
        return files
    raise _no_such_split(folder, split or _DEFAULT_SPLIT, sorted(set(names) - {""}))


def _no_such_split(source: object, split: str, found: list[str]) -> DataError:
    return DataError(f"{source} has no split {split!r}; found {found}. Write {source}@SPLIT with one of them")


def _read(files: list[Path]) -> datasets.Dataset:
    try:
        dataset = _READERS[files[0].suffix]([str(file) for file in files])
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"cannot read {files[0]}: {error.__cause__ or error}; write the file again") from error
    return _anchor_paths(dataset, files[0].parent)


def _anchor_paths(dataset: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Make relative picture paths, in a column of texts, relative to the file they were read from."""
    if not _holds_text(dataset):
        return dataset

    def anchor(row: dict[str, Any]) -> dict[str, Any]:
        return {IMAGES: [image if _is_address(image) else str(folder / image) for image in as_list(row[IMAGES])]}

    return dataset.map(anchor)


def _holds_text(dataset: datasets.Dataset) -> bool:
    if IMAGES not in dataset.column_names:
        return False
    kind = dataset.features.arrow_schema.field(IMAGES).type
    return is_text(kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind)


def _is_address(image: str) -> bool:
    return image.startswith("data:") or "://" in image


def _load_hub(name: str, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"cannot load the split {split!r} of {name!r}, which is no local path, from the hub: {error}. Check the "
            "name, the split and the connection"
        ) from error
