"""The rollouts of a run and their images, in files that stay below a limit however long the run lasts."""

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from vgpo.records import describe_value
from vgpo.run.storage import (
    RunFolderError,
    append_records,
    keep_lines,
    parse_object,
    read_lines,
    reported_faults,
    write_file,
)
from vgpo.training.records import VERSION, RolloutRecord, upgrade_0_1


class RolloutLog:
    """rollouts.jsonl and images/ of one run folder.

    max_bytes: of both together. When a write has taken them beyond it, the oldest records go, until the rest takes
    at most half; so what was written before is copied about once. The newest record always stays. Only one process
    may write.
    accuracy_reward: which of these reward functions is the accuracy of the run; asked for lines of vgpo 0.1 only.
    """

    def __init__(self, folder: Path, max_bytes: int, accuracy_reward: Callable[[tuple[str, ...]], str | None]) -> None:
        self.folder = folder
        self.path = folder / "rollouts.jsonl"
        self.images_path = folder / "images"
        self.max_bytes = max_bytes
        self._accuracy_reward = functools.cache(accuracy_reward)
        self._num_bytes: int | None = None  # measured before the first write, then counted

    def write(self, records: Sequence[RolloutRecord], images: Mapping[str, Image.Image]) -> None:
        """Append records and save their images; see `RunFolder.write_rollouts`."""
        num_bytes = self._measure() if self._num_bytes is None else self._num_bytes
        num_bytes += sum(self._save(name, image) for name, image in images.items())
        self._num_bytes = num_bytes + append_records(self.path, [record.model_dump() for record in records])
        if self._num_bytes > self.max_bytes:
            self._drop_oldest()

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
        """Drop the records of later steps, and the images that none of the others names."""
        self._keep([record.step <= step for record in self.read()])

    def _save(self, name: str, image: Image.Image) -> int:
        """Save an image as PNG, unless it is there. Returns how many bytes were written."""
        path = self.folder / name
        if path.exists():
            return 0
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        write_file(path, encoded.getvalue())
        return len(encoded.getvalue())

    def _drop_oldest(self) -> None:
        with self.path.open("rb") as lines:
            lengths = [len(line) for line in lines]
        names = [record.media for record in self.read()]
        sizes = {f"images/{image.name}": image.stat().st_size for image in self.images_path.glob("*.png")}
        room = self.max_bytes // 2
        keep = [False] * len(names)
        for number in reversed(range(len(names))):
            # The bytes of an image are counted for the newest record that names it.
            room -= lengths[number] + sum(sizes.pop(name, 0) for name in names[number])
            if room < 0 and any(keep):
                break
            keep[number] = True
        self._keep(keep)

    def _keep(self, keep: Sequence[bool]) -> None:
        """Keep these records and their images. The records first: none that is left ever lacks its image."""
        keep_lines(self.path, keep)
        named = {name for record in self.read() for name in record.media}
        for image in self.images_path.glob("*.png"):
            if f"images/{image.name}" not in named:
                image.unlink()
        self._num_bytes = self._measure()

    def _measure(self) -> int:
        images = sum(image.stat().st_size for image in self.images_path.glob("*.png"))
        return images + (self.path.stat().st_size if self.path.exists() else 0)
