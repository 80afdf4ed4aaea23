"""The rollouts of a run and their pictures, in files that stay below a limit however long the run lasts."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vgpo.run.storage import NUMBER, STEP, Fields, append_records, keep_lines, read_records, write_file

PNG_MODES = ("1", "L", "LA", "RGB", "RGBA")
STORED: Fields = {**STEP, "images": list}
# What readers of a record rest on.
ROLLOUT: Fields = {
    **STORED,
    "group": int,
    "row": int,
    "problem": str,
    "answer": object,
    "tokens": list,
    "focus": list | None,
    "advantage": NUMBER | None,
    "rewards": dict,
}


class RolloutLog:
    """rollouts.jsonl and images/ of one run folder.

    max_bytes: of both together. When a write has taken them beyond it, the oldest records go, until the rest takes
    at most half; so what was written before is copied about once. The newest record always stays. Only one process
    may write.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.path = folder / "rollouts.jsonl"
        self.images_path = folder / "images"
        self.max_bytes = max_bytes
        self._num_bytes: int | None = None  # measured before the first write, then counted

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records with their pictures; see `RunFolder.write_rollouts`."""
        num_bytes = self._measure() if self._num_bytes is None else self._num_bytes
        # The rollouts of a group share one picture object: hash it once.
        pictures = {id(image): image for record in records for image in record["images"]}
        saved = {key: self._save(image) for key, image in pictures.items()}
        named = [{**record, "images": [saved[id(image)][0] for image in record["images"]]} for record in records]
        self._num_bytes = num_bytes + append_records(self.path, named) + sum(size for _, size in saved.values())
        if self._num_bytes > self.max_bytes:
            self._drop_oldest()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records in order, one at a time (the file may be larger than memory).

        Raises:
            RunFolderError: a line is broken, or lacks a field; names it.
        """
        return read_records(self.path, ROLLOUT)

    def cut_back(self, step: int) -> None:
        """Drop the records of later steps, and the pictures that none of the others names."""
        self._keep([record["step"] <= step for record in self._stored()])

    def _stored(self) -> Iterator[dict[str, Any]]:
        return read_records(self.path, STORED)

    def _save(self, image: Image.Image) -> tuple[str, int]:
        """Save as PNG under a name made of its content, unless it is there.

        Returns:
            tuple: the path relative to the run folder, and how many bytes were written.
        """
        picture = image if image.mode in PNG_MODES else image.convert("RGB")
        content = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())
        name = f"images/{content.hexdigest()[:20]}.png"
        path = self.folder / name
        if path.exists():
            return name, 0
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG")
        write_file(path, encoded.getvalue())
        return name, len(encoded.getvalue())

    def _drop_oldest(self) -> None:
        with self.path.open("rb") as lines:
            lengths = [len(line) for line in lines]
        names = [record["images"] for record in self._stored()]
        sizes = {f"images/{picture.name}": picture.stat().st_size for picture in self.images_path.glob("*.png")}
        room = self.max_bytes // 2
        keep = [False] * len(names)
        for number in reversed(range(len(names))):
            # What a picture takes is counted for the newest record that names it.
            room -= lengths[number] + sum(sizes.pop(name, 0) for name in names[number])
            if room < 0 and any(keep):
                break
            keep[number] = True
        self._keep(keep)

    def _keep(self, keep: Sequence[bool]) -> None:
        """Keep these records and their pictures. The records first: none that is left ever lacks its picture."""
        keep_lines(self.path, keep)
        named = {name for record in self._stored() for name in record["images"]}
        for picture in self.images_path.glob("*.png"):
            if f"images/{picture.name}" not in named:
                picture.unlink()
        self._num_bytes = self._measure()

    def _measure(self) -> int:
        pictures = sum(picture.stat().st_size for picture in self.images_path.glob("*.png"))
        return pictures + (self.path.stat().st_size if self.path.exists() else 0)
