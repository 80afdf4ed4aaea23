"""The rollouts of a run and their images, in files of bounded size."""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vgpo.records import describe_value
from vgpo.run.records import Saved
from vgpo.run.storage import (
    RunFolderError,
    append_lines,
    keep_lines,
    keep_valid_lines,
    parse_object,
    read_lines,
    read_record,
    reading,
    reported_faults,
    to_json,
    write_file,
)
from vgpo.training.records import VERSION, RolloutRecord, upgrade_0_1

DIGITS = 16  # of a SHA-256, enough to distinguish lines of one step


class RolloutLog:
    """rollouts.jsonl and images/ of one run folder.

    Only one process may write.

    Which records are kept depends only on what was written since the run began, so that a resumed run keeps the same
    ones as an uninterrupted run: whenever `written` passes a multiple of half the limit, steps that began more than
    one half before that multiple are deleted. The newest step is always kept.

    Args:
        max_bytes: limit of both together; an image counts each time that it is handed over.
        accuracy_reward: which of these reward functions is the accuracy of the run; asked for lines of vgpo 0.1 only.

    Attributes:
        written: bytes of records and images written since the run began, including deleted ones. A resumed run sets
        it; otherwise it is the existing size when the first record is written.
    """

    def __init__(self, folder: Path, max_bytes: int, accuracy_reward: Callable[[tuple[str, ...]], str | None]) -> None:
        self.folder = folder
        self.path = folder / "rollouts.jsonl"
        self.images_path = folder / "images"
        self.dropped_path = folder / "rollouts_dropped.json"
        self.max_bytes = max_bytes
        self._accuracy_reward = functools.cache(accuracy_reward)
        self._written: int | None = None
        self._digests: dict[int, str] | None = None  # read once, then kept up to date

    @property
    def written(self) -> int:
        if self._written is None:
            self._written = sum(self.sizes_of_steps().values())
        return self._written

    @written.setter
    def written(self, num_bytes: int) -> None:
        self._written = num_bytes

    @property
    def digests(self) -> dict[int, str]:
        """A digest of the lines of each step that is kept, for a checkpoint.

        Raises:
            RunFolderError: a line is broken; names it.
        """
        if self._digests is None:
            self._digests, broken = scan(self.path)
            if broken:
                raise RunFolderError(broken)
        return self._digests

    @property
    def last_dropped(self) -> int:
        """The last step whose records were deleted because of the limit; 0 if none, or if a power cut lost the
        record."""
        try:
            return read_record(self.dropped_path, Saved).step
        except RunFolderError:
            return 0

    def write(self, records: Sequence[RolloutRecord], images: Mapping[str, Image.Image]) -> None:
        """Append the records of a step and save their images; see `RunFolder.write_rollouts`."""
        before = self.written
        lines = b"".join(to_json(record.model_dump()) + b"\n" for record in records)
        num_bytes = sum(self._save(name, image) for name, image in images.items())
        self.written = before + num_bytes + append_lines(self.path, lines)
        if self._digests is not None:
            self._digests[records[0].step] = digest(lines)
        half = max(1, self.max_bytes // 2)
        if self.written // half > max(1, before // half):
            self._drop_before((self.written // half - 1) * half)

    def read(self) -> Iterator[RolloutRecord]:
        """Yield the records in order, one at a time (the file may be larger than memory).

        Raises:
            RunFolderError: a line is broken, or lacks a field; names it.
        """
        return read_lines(self.path, self.parse)

    def parse(self, line: bytes, where: str) -> RolloutRecord:
        """A line of the file; one of vgpo 0.1 is upgraded.

        Raises:
            RunFolderError: it is broken, lacks a field, or is of a newer version; names `where` and the field.
        """
        data = parse_object(line, where)
        if data.get("version", VERSION) != VERSION:
            raise RunFolderError(
                f"{where}: found version {describe_value(data['version'])}, expected {VERSION} or none; read the run "
                "with the vgpo that wrote it."
            )
        with reported_faults(where):
            return (
                RolloutRecord.model_validate(data) if "version" in data else upgrade_0_1(data, self._accuracy_reward)
            )

    def cut_back(self, step: int) -> None:
        """Drop the records of later steps, and images that no other record names."""
        keep_valid_lines(self.path, self.parse, lambda record: record.step <= step)
        self._digests = None
        if self.last_dropped > step:
            self._note_dropped(step)
        self._drop_unnamed_images()

    def _save(self, name: str, image: Image.Image) -> int:
        """Save an image as PNG, unless it exists. Returns its size in bytes."""
        path = self.folder / name
        if path.exists():
            return path.stat().st_size
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        write_file(path, encoded.getvalue())
        return len(encoded.getvalue())

    def _drop_before(self, place: int) -> None:
        """Drop the steps that began before so many bytes were written, except the newest."""
        sizes = self.sizes_of_steps()
        kept: set[int] = set()
        end = self.written
        for step in sorted(sizes, reverse=True):
            end -= sizes[step]
            if kept and end < place:
                break
            kept.add(step)
        dropped = [step for step in sizes if step not in kept]
        if not dropped:
            return
        self._note_dropped(max(dropped))  # before deletion: a resume must not report them as lost
        self._keep([record.step in kept for record in self.read()])

    def _note_dropped(self, step: int) -> None:
        write_file(self.dropped_path, to_json({"step": step}) + b"\n")

    def sizes_of_steps(self) -> dict[int, int]:
        """Bytes of the records of each step and of the images that they name."""
        sizes: dict[int, int] = {}
        names: dict[int, set[str]] = {}
        if not self.path.exists():
            return sizes
        with self.path.open("rb") as lines:
            for line, record in zip(lines, self.read(), strict=False):
                sizes[record.step] = sizes.get(record.step, 0) + len(line)
                names.setdefault(record.step, set()).update(record.media)
        return {step: size + sum(map(self._size_of_image, names[step])) for step, size in sizes.items()}

    def _size_of_image(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def _keep(self, keep: Sequence[bool]) -> None:
        """Keep these records and their images. Records are written first, so that no record lacks its image."""
        keep_lines(self.path, keep)
        self._digests = None
        self._drop_unnamed_images()

    def _drop_unnamed_images(self) -> None:
        named = {name for record in self.read() for name in record.media}
        for image in self.images_path.glob("*.png"):
            if f"images/{image.name}" not in named and image.is_file():
                image.unlink()


def scan(path: Path) -> tuple[dict[int, str], str | None]:
    """A digest of the lines of each step in rollouts.jsonl, and what is wrong with the first line that is broken."""
    lines: dict[int, Any] = {}
    broken: str | None = None
    if os.path.lexists(path):
        with reading(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    lines.setdefault(parse_step(line, f"{path}, line {number}"), hashlib.sha256()).update(line)
                except RunFolderError as error:
                    broken = broken or str(error)
    return {step: found.hexdigest()[:DIGITS] for step, found in lines.items()}, broken


def parse_step(line: bytes, where: str) -> int:
    """The step of a line of rollouts.jsonl, without validating the rest.

    Raises:
        RunFolderError: it is broken, or has no step; names `where`.
    """
    step = parse_object(line, where).get("step")
    if not isinstance(step, int):
        raise RunFolderError(f"{where}: found step {step!r}, expected a whole number; restore or delete it.")
    return step


def digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()[:DIGITS]
