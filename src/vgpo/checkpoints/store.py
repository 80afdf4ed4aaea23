"""Atomic checkpoints: complete or absent.

A checkpoint is written under a temporary name that no loader reads, gets a manifest of its files, and is renamed once
it is synced to disk. Only then may older ones be deleted. A kill or a full disk at any moment leaves the newest intact
one.
"""

import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PINNED = "pinned.json"
FORMAT = 2
OF_VERSION_0_1 = (  # format 1: training state as JSON and safetensors
    "was saved by vgpo 0.1, whose training state this version does not read: finish the run with vgpo 0.1, or begin a "
    "new run from its weights by naming it as model_name_or_path"
)

_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
# Files that operating systems add: they contain no weights, and no loader reads them.
_SYSTEM_FILES = (".DS_Store", "._*", ".nfs*", ".fuse_hidden*", "Thumbs.db", "desktop.ini")
_LEFTOVER = re.compile(r"\.(deleting|replaced|saving)-checkpoint-(0|[1-9][0-9]*)")
_CHUNK_BYTES = 1 << 20
_NAMES_SHOWN = 5


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or trusted; the message says which, why and what to do."""


@dataclass(frozen=True)
class Found:
    """The newest usable checkpoint, and the newer ones that are not.

    path, step: None if none is usable. passed_over: skipped checkpoints as (folder name, reason), newest first.
    """

    path: Path | None
    step: int | None
    passed_over: list[tuple[str, str]]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run: `begin`, write files into the staging folder, `commit`.

    Only the main process of the world calls this; others may write into the staging folder between `begin` and
    `commit`, with a barrier after the former and before the latter. Links and unknown names in the folder are not
    touched.

    Args:
        folder: parent of the `checkpoint-<step>` folders; created by the first `begin`.
        keep: number of newest checkpoints to keep, at least 1; None keeps all.
    """

    folder: Path
    keep: int | None = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep is {self.keep}, expected at least 1, or None to keep every checkpoint")

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint once it is committed."""
        return self.folder / f"checkpoint-{step}"

    def staging_path(self, step: int) -> Path:
        """The folder in which a step's checkpoint is written before it is committed."""
        return self.folder / f".saving-checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps of all `checkpoint-<step>` folders, usable or not, newest first."""
        return [step for step in self._named_steps() if _is_real_folder(self.path(step))]

    def complete_steps(self, *, before: int | None = None) -> list[int]:
        """Steps, smaller than `before`, of the checkpoints whose files all have the right size, newest first."""
        return [
            step
            for step in self.steps()
            if (before is None or step < before) and self.verify(self.path(step), contents=False) is None
        ]

    def begin(self, step: int) -> Path:
        """Remove leftovers of killed saves, create an empty staging folder and return it.

        Raises:
            CheckpointError: it cannot be created, or the checkpoint's name is taken by something that is not a folder.
        """
        staging, place = self.staging_path(step), self.path(step)
        if os.path.lexists(place) and not _is_real_folder(place):
            raise CheckpointError(f"{place} is a link or a file, expected a folder or nothing; move it elsewhere.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._put_back()
            for leftover in self._leftovers("deleting", "replaced", "saving"):
                self._delete(leftover)
            staging.mkdir()
        except OSError as error:
            raise self.give_up(step, error) from error
        return staging

    def commit(self, step: int) -> Path:
        """Seal the staging folder, rename it to its final name and only then delete old checkpoints.

        Complete checkpoints are deleted, except the pinned ones and the newest `keep` up to this step: those of later
        steps belong to a run that was reset to an earlier one. A checkpoint that is incomplete or of another format is
        never deleted.

        Returns:
            the folder of the checkpoint. An existing one of the same step is replaced; if it was not usable, it is
            renamed to `unusable-checkpoint-<step>` and kept.

        Raises:
            CheckpointError: writing failed, and older checkpoints are unchanged; or the staging folder contains no
            file, or a link.
        """
        staging, place = self.staging_path(step), self.path(step)
        try:
            seal(staging, step)
            replaced = put_in_place(staging, place)
        except OSError as error:
            raise self.give_up(step, error) from error
        if replaced.exists():
            self._delete(replaced)
        self._prune(step)
        return place

    def give_up(self, step: int, error: Exception) -> CheckpointError:
        """Remove the staging folder after a failed write, and return the error to raise."""
        staging, free = self.staging_path(step), _free_bytes(self.folder)
        if _is_real_folder(staging):
            self._delete(staging)
        try:
            newest = self.newest_valid().path
        except CheckpointError:  # report the first error
            newest = None
        return CheckpointError(
            f"{self.path(step)} could not be saved: {error} ({free} bytes were free on this disk). Its unfinished "
            f"files were removed, older checkpoints are unchanged; newest usable one: {newest or 'none'}. Free "
            "space on this disk, or correct what the error names, and resume."
        )

    def newest_valid(self, *, at: int | None = None, before: int | None = None, contents: bool = True) -> Found:
        """Find the newest checkpoint that is, byte by byte, what was saved.

        Args:
            at: only this step.
            before: only steps smaller than this one.
            contents: see `verify`.

        Raises:
            CheckpointError: the folder cannot be listed, so it is unknown whether it holds checkpoints.
        """
        try:
            self._put_back()
            steps = self._named_steps() if at is None else [at]
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be listed ({error.strerror}), so whether it holds checkpoints is unknown. "
                "Restore access to it (permissions, mounted disks, the target of a link), and resume."
            ) from error
        passed_over: list[tuple[str, str]] = []
        for step in steps:
            if before is not None and step >= before:
                continue
            reason = self.verify(self.path(step), contents=contents)
            if reason is None:
                return Found(self.path(step), step, passed_over)
            passed_over.append((self.path(step).name, reason))
        return Found(None, None, passed_over)

    @staticmethod
    def verify(path: Path, *, contents: bool = True, more: bool = False) -> str | None:
        """Return why a checkpoint is not usable; None if it is usable.

        A file that the manifest does not list is a reason: loaders decide by the files they find, so an adapter, an
        index or a second weight file that was added later changes what is loaded.

        Args:
            path: folder of a checkpoint.
            contents: False compares names and sizes only, and reads only the manifest.
            more: accept files that the manifest does not list.
        """
        try:
            _check(path, contents, more)
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or path} cannot be read: {error.strerror}"
        return None

    def pin(self, step: int, reason: str) -> None:
        """Never delete this checkpoint; the reason is stored in `pinned.json`.

        Raises:
            CheckpointError: there is no such checkpoint, or writing failed.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.path(step)} does not exist; found {self.steps()}. Pin one of these.")
        pins = {str(pinned): why for pinned, why in {**self.pins(), step: reason}.items()}
        partial = self.folder / f".{PINNED}.partial"
        try:
            _write(partial, pins)
            partial.replace(self.folder / PINNED)
            _sync(self.folder)
        except OSError as error:
            raise CheckpointError(f"{self.path(step)} could not be pinned: {error}. Free space and resume.") from error

    def pins(self) -> dict[int, str]:
        """Steps of pinned checkpoints and the reasons.

        Raises:
            CheckpointError: `pinned.json` is not valid.
        """
        path = self.folder / PINNED
        if not path.exists():
            return {}
        try:
            return {int(step): str(reason) for step, reason in json.loads(path.read_bytes()).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: expected a JSON object of steps and reasons ({error}). Restore it, or delete it if no "
                "checkpoint has to be kept permanently."
            ) from error

    def _named_steps(self) -> list[int]:
        """Steps of all entries with the name of a checkpoint, including links and files, newest first."""
        if not os.path.lexists(self.folder):
            return []
        names = (_CHECKPOINT.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _leftovers(self, *kinds: str) -> list[Path]:
        """Leftovers of killed saves, `deleting` first: this frees the name for another folder of that step."""
        found = [(_LEFTOVER.fullmatch(entry.name), entry) for entry in sorted(self.folder.iterdir())]
        return [entry for name, entry in found if name and name[1] in kinds and _is_real_folder(entry)]

    def _put_back(self) -> None:
        """Undo a replacement that was interrupted after the old checkpoint was moved and before the new one was."""
        if not os.path.lexists(self.folder):
            return
        for replaced in self._leftovers("replaced"):
            place = self.folder / replaced.name.removeprefix(".replaced-")
            if not os.path.lexists(place):
                replaced.rename(place)

    def _prune(self, newest: int) -> None:
        if self.keep is None:
            return
        complete = self.complete_steps()
        stay = {*[step for step in complete if step <= newest][: self.keep], *self.pins()}
        for step in complete:
            if step not in stay:
                self._delete(self.path(step))

    def _delete(self, folder: Path) -> None:
        # Renamed first: a partial checkpoint never has the name of a checkpoint.
        doomed = self.folder / f".deleting-checkpoint-{folder.name.rpartition('-')[2]}"
        try:
            folder.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(
                f"{folder} could not be deleted ({error}); it takes up space until a later save can delete it.",
                RuntimeWarning,
                stacklevel=2,
            )


def _free_bytes(folder: Path) -> str:
    """C++ writers do not report that a disk is full."""
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "unknown"


def strict_difference(expected: Iterable[str], found: Iterable[str]) -> str | None:
    """Describe missing and unexpected names, some of each; None if the two sets are equal."""
    expected, found = set(expected), set(found)
    sides = {"missing": expected - found, "unexpected": found - expected}
    parts = []
    for side, names in sides.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        if names:
            parts.append(f"{side}: {', '.join(sorted(names)[:_NAMES_SHOWN])}{more}")
    return "; ".join(parts) or None


def put_in_place(staging: Path, place: Path) -> Path:
    """Rename a sealed folder to its final name, and return the new path of a complete one that had it, to be deleted.

    One that is incomplete, or contains more than was saved, is renamed to `unusable-<name>` and kept. A kill between
    the renames leaves one of them.

    Raises:
        OSError: writing failed.
    """
    replaced = place.with_name(f".replaced-{place.name}")
    if os.path.lexists(place):
        if replaced.exists():  # leftover of a killed save: the newer one is in place
            shutil.rmtree(replaced)
        place.rename(replaced if CheckpointStore.verify(place) is None else _unusable_name(place))
    staging.rename(place)
    _sync(place.parent)
    return replaced


def seal(staging: Path, step: int) -> None:
    """Sync every file to disk and then write the manifest, which marks the folder as complete.

    Raises:
        CheckpointError: the folder contains no file, or a link.
        OSError: writing failed.
    """
    folders, others = _tree(staging)
    files = {file.relative_to(staging).as_posix(): file for file in others}
    files.pop(MANIFEST, None)
    if not files:
        raise CheckpointError(f"{staging} contains no file: nothing was written for step {step}.")
    entries = {name: file_entry(_regular(name, file), sync=True) for name, file in files.items()}
    _write(staging / MANIFEST, {"format": FORMAT, "step": step, "files": entries})
    for folder in folders:
        _sync(folder)


def _check(path: Path, contents: bool, more: bool) -> None:
    if not _is_real_folder(path):
        raise CheckpointError("a link or a file, expected a folder" if os.path.lexists(path) else "not there")
    manifest = _read_manifest(path)
    name = _CHECKPOINT.fullmatch(path.name)
    if name and int(name[1]) != manifest["step"]:
        raise CheckpointError(f"{MANIFEST} is of step {manifest['step']}, expected step {name[1]}")
    entries = manifest["files"]
    found = {file.relative_to(path).as_posix(): file for file in _tree(path)[1]}
    expected = {*entries, MANIFEST}
    if difference := strict_difference(expected, found.keys() & expected if more else found):
        raise CheckpointError(f"files {difference}")
    for name, entry in entries.items():
        size = _regular(name, found[name]).stat().st_size
        if size != entry["size"]:
            raise CheckpointError(f"{name} has {size} bytes, expected {entry['size']}")
    for name, entry in entries.items():
        if contents and file_entry(found[name]) != entry:
            raise CheckpointError(f"{name} does not hold the bytes that were saved (its sha256 differs)")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise CheckpointError(f"{MANIFEST} is missing: the save did not finish, or another library wrote it")
    try:
        manifest = json.loads(_regular(MANIFEST, path).read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} is not valid JSON ({error})") from error
    if isinstance(manifest, dict) and manifest.get("format") == 1:
        raise CheckpointError(OF_VERSION_0_1)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(f"{MANIFEST} has format {found!r}, expected {FORMAT}")
    files = manifest.get("files")
    listed = isinstance(files, dict) and all(
        isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in files.values()
    )
    if not listed or not isinstance(manifest.get("step"), int):
        raise CheckpointError(f"{MANIFEST} lists no step, or no files with size and sha256")
    return manifest


def _tree(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return all folders, the inner ones first and `folder` last, and everything else except `_SYSTEM_FILES`.

    Links are listed, never followed.
    """
    folders, others = [], []
    for entry in sorted(folder.iterdir()):
        if not _is_real_folder(entry):
            others += [] if _is_system_file(entry) else [entry]
            continue
        below = _tree(entry)
        folders += below[0]
        others += below[1]
    return [*folders, folder], others


def _is_system_file(path: Path) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _SYSTEM_FILES)


def _unusable_name(place: Path) -> Path:
    """A free name for an unusable checkpoint whose name is needed."""
    first = place.with_name(f"unusable-{place.name}")
    names = itertools.chain([first], (first.with_name(f"{first.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _regular(name: str, path: Path) -> Path:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{name} is a link or a special file, expected a plain file")
    return path


def file_entry(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Size and sha256 of a file, read in chunks; with `sync`, after it is synced to disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _write(path: Path, value: dict[str, Any]) -> None:
    with path.open("wb", buffering=0) as file:
        rest = memoryview(json.dumps(value, indent=1, sort_keys=True).encode("ascii"))
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
