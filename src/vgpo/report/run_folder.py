"""The run folder: what a run was (config, code, machine) and what it did (metrics, rollouts, evaluation)."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vgpo.report.environment import code_diff, describe_environment, hide_secrets
from vgpo.report.storage import (
    RunFolderError,
    append_records,
    plain,
    read_object,
    read_records,
    to_json,
    write_file,
)

# Any of these says that a folder holds a run; config.yaml is the last thing that `create` writes.
MARKS_OF_A_RUN = ("config.yaml", "metrics.jsonl", "rollouts.jsonl", "evaluation.json", "checkpoints")
PNG_MODES = ("1", "L", "LA", "RGB", "RGBA")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. `create` starts a new one, `open` takes an existing one; the constructor touches nothing.

    Only one process may write: the world's main one.
    """

    path: Path

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Any], *, seed: int, command: Sequence[str]) -> "RunFolder":
        """Start a run folder: config.yaml, environment.json and code.diff.

        Args:
            path: new or empty folder (files that are no part of a run are left alone).
            config: the resolved settings; values YAML has no type for are written as text, credentials hidden.
            seed: seed of the run.
            command: the words of the command line.

        Raises:
            RunFolderError: the folder already holds a run, or cannot be written.
        """
        folder = cls(Path(path))
        folder.refuse_taken()
        try:
            folder.images_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{folder.images_path} could not be made: {error.strerror}. Choose another output folder."
            ) from error
        environment = describe_environment(seed, command)
        write_file(folder.path / "environment.json", to_json(environment, indent=2) + b"\n")
        write_file(folder.path / "code.diff", code_diff().encode("utf-8"))
        resolved = hide_secrets(plain(config, other=str))
        write_file(folder.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False).encode("ascii"))
        return folder

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open the folder of an existing run.

        Raises:
            RunFolderError: there is no run in it.
        """
        folder = cls(Path(path))
        if not (folder.path / "config.yaml").is_file():
            raise RunFolderError(
                f"{folder.path} holds no run: config.yaml is missing. Pass the folder that training wrote."
            )
        return folder

    def refuse_taken(self) -> None:
        """Touch nothing, and raise if the folder holds a run.

        Raises:
            RunFolderError: it does; names the files that say so.
        """
        # An empty folder is no mark: a trainer makes `checkpoints` when it is built.
        held = [name for name in MARKS_OF_A_RUN if (mark := self.path / name).is_file() or any(mark.glob("*"))]
        if held:
            raise RunFolderError(
                f"{self.path} already holds a run ({', '.join(held)}). Choose another output folder, "
                "or move or delete this one."
            )

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def images_path(self) -> Path:
        return self.path / "images"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def read_config(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "config.yaml").read_bytes())

    def read_environment(self) -> dict[str, Any]:
        return read_object(self.path / "environment.json")

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; needs the key `step`. A float that is not finite is written as null.

        Raises:
            RunFolderError: the disk refused; says up to which step the file is intact.
        """
        append_records(self.metrics_path, [metrics])

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines in order, as written."""
        return list(read_records(self.metrics_path))

    def write_rollouts(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append rollout records; the `rollout_writer` of the trainer.

        Each distinct picture (same size, mode and pixels) is saved once under images/, and the record holds
        its path relative to the run folder.

        Args:
            records: dicts with `step` and `images` (list of `PIL.Image.Image`) and JSON-able values.

        Raises:
            RunFolderError: the disk refused; none of these records was written.
        """
        # The rollouts of a group share one picture object: hash it once.
        pictures = {id(image): image for record in records for image in record["images"]}
        saved = {key: self.save_image(image) for key, image in pictures.items()}
        append_records(
            self.rollouts_path,
            [{**record, "images": [saved[id(image)] for image in record["images"]]} for record in records],
        )

    def save_image(self, image: Image.Image) -> str:
        """Save as PNG under a name made of its content; return the path relative to the run folder."""
        picture = image if image.mode in PNG_MODES else image.convert("RGB")
        content = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())
        path = self.images_path / f"{content.hexdigest()[:20]}.png"
        if not path.exists():
            encoded = io.BytesIO()
            picture.save(encoded, format="PNG")
            write_file(path, encoded.getvalue())
        return path.relative_to(self.path).as_posix()

    def read_rollouts(self) -> Iterator[dict[str, Any]]:
        """Yield the records in order, one at a time (the file may be larger than memory)."""
        return read_records(self.rollouts_path)

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Write `{"before": {...}, "after": {...}}`, each the fields of `vgpo.study.Evaluation`."""
        write_file(self.evaluation_path, to_json(evaluation, indent=2) + b"\n")

    def read_evaluation(self) -> dict[str, Any] | None:
        """Return what `write_evaluation` wrote, None before it was called."""
        return read_object(self.evaluation_path) if self.evaluation_path.exists() else None
