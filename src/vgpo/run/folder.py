"""The run folder: description of a run (config, code, machine) and its results (metrics, rollouts, evaluation)."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vgpo.metric_names import with_current_names
from vgpo.run.accuracy import accuracy_reward_of
from vgpo.run.environment import code_diff, describe_environment, hide_secrets
from vgpo.run.outputs import OLD_INTERRUPTED
from vgpo.run.records import Environment, Finished, Interrupted, MetricsLine, Resume, Saved, Scores
from vgpo.run.rollout_log import RolloutLog
from vgpo.run.storage import (
    RunFolderError,
    append_records,
    check_mapping,
    check_record,
    parse_object,
    parser_of,
    plain,
    read_bytes,
    read_lines,
    read_object,
    read_record,
    to_json,
    write_file,
)
from vgpo.training.records import RolloutRecord

# Any of these marks a folder as a run folder; `create` writes config.yaml last.
MARKS_OF_A_RUN = ("config.yaml", "metrics.jsonl", "rollouts.jsonl", "evaluation.json", "checkpoints")
MAX_ROLLOUT_BYTES = 1024**3
MAX_REASON = 300  # characters
STATUS_OF_SIGNALS = {128 + number: number.name for number in signal.Signals}
SUMMARY = "train_runtime"  # a key of the line that a trainer logs when it ends, early or not


@dataclass(frozen=True)
class RunPaths:
    """Where the files of one run are. A name that changes is still read."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def resumes_path(self) -> Path:
        return self.path / "resumes.jsonl"

    @property
    def images_path(self) -> Path:
        return self.path / "images"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_path(self) -> Path:
        """Weights of the trained model."""
        return self.checkpoints_path / "final"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def suite_path(self) -> Path:
        """A file for each evaluation on benchmarks during training."""
        return self.path / "eval_suite"

    @property
    def interrupted_path(self) -> Path:
        """Versions before 0.2 called it `OLD_INTERRUPTED`; such a file is read, and a resume removes it."""
        old = self.path / OLD_INTERRUPTED
        return old if old.is_file() else self.path / "interrupted.json"

    @property
    def finished_path(self) -> Path:
        return self.path / "finished.json"

    @property
    def identity_path(self) -> Path:
        return self.path / "run_identity.json"

    @property
    def saved_path(self) -> Path:
        return self.path / "newest_checkpoint.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """The files of one run. `create` starts a new one, `open` reads an existing one, `resume_folder` continues it.

    The constructor does not access the disk. Only the main process may write, holding `vgpo.run.locked`.
    max_rollout_bytes: limit of rollouts.jsonl and images/ together, > 0; beyond it the oldest rollouts are deleted
    (`vgpo.run.rollout_log`). metrics.jsonl, one line per logged step, has no limit.
    """

    max_rollout_bytes: int = MAX_ROLLOUT_BYTES

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        seed: int,
        command: Sequence[str],
        identity: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Start a run folder: run_identity.json, environment.json, code.diff and config.yaml.

        Args:
            path: new or empty folder (files that are not part of a run are not touched).
            config: the resolved settings; values YAML has no type for are written as text, credentials hidden.
            seed: seed of the run.
            command: the words of the command line.
            identity: values that must be unchanged when the run is resumed before its first checkpoint.
            defaults: of the settings that differ from them (`vgpo.run.defaults.changed_defaults`).

        Raises:
            RunFolderError: the folder already contains a run, or cannot be written.
        """
        folder = cls(Path(path))
        folder.require_free()
        try:
            folder.images_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{folder.images_path} could not be created: {error.strerror}. Choose another output folder."
            ) from error
        folder.write_identity(identity or {})
        folder.write_description(config, seed=seed, command=command, defaults=defaults)
        return folder

    def write_description(
        self,
        config: Mapping[str, Any],
        *,
        seed: int,
        command: Sequence[str],
        defaults: Mapping[str, Any] | None = None,
        only: Sequence[str] = (),
    ) -> None:
        """Write environment.json, code.diff and, last, config.yaml; or `only` those of them."""
        resolved = hide_secrets(plain(config, other=str))
        changed = hide_secrets(plain(defaults or {}, other=str))
        contents = {
            self.environment_path: lambda: (
                to_json({**describe_environment(seed, command), "defaults": changed}, indent=2) + b"\n"
            ),
            self.path / "code.diff": lambda: code_diff().encode("utf-8"),
            self.config_path: lambda: yaml.safe_dump(resolved, sort_keys=False).encode("ascii"),
        }
        for path, content in contents.items():
            if not only or path.name in only:
                write_file(path, content())

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open the folder of an existing run.

        Raises:
            RunFolderError: there is no run in it.
        """
        folder = cls(Path(path))
        if not folder.config_path.is_file():
            raise RunFolderError(
                f"{folder.path} is not a run folder (no config.yaml). Pass the folder written by `vgpo train`."
            )
        return folder

    @property
    def marks(self) -> list[str]:
        """Files that show that a run has begun in the folder; empty if there are none."""
        # An empty folder is not a mark: a trainer creates `checkpoints` when it is built.
        return [name for name in MARKS_OF_A_RUN if (mark := self.path / name).is_file() or any(mark.glob("*"))]

    def require_free(self) -> None:
        """Raise if the folder contains a run, without changing anything.

        Raises:
            RunFolderError: it does; names the files that show it.
        """
        if held := self.marks:
            raise RunFolderError(
                f"{self.path} already contains a run ({', '.join(held)}). Choose another output folder, "
                "or move or delete this one."
            )

    @cached_property
    def rollouts(self) -> RolloutLog:
        return RolloutLog(self.path, self.max_rollout_bytes, self.accuracy_reward)

    def read_config(self) -> dict[str, Any]:
        """Return the settings.

        Raises:
            RunFolderError: config.yaml cannot be read, or is not a mapping.
        """
        text = read_bytes(self.config_path)
        try:
            settings = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # the latter for an invalid date
            reason = " ".join(str(error).split())
            raise RunFolderError(f"{self.config_path}: not valid YAML ({reason}); restore it.") from error
        return check_mapping(settings, str(self.config_path))

    def accuracy_reward(self, reward_names: Sequence[str]) -> str | None:
        """The reward that is the accuracy of the run; see `accuracy_reward_of`.

        Raises:
            RunFolderError: config.yaml cannot be read, or names none of these rewards.
        """
        return accuracy_reward_of(self.read_config(), reward_names)

    def read_environment(self) -> Environment:
        """Return what `vgpo.run.environment.describe_environment` found when the run began.

        Raises:
            RunFolderError: environment.json cannot be read, or lacks what a report shows.
        """
        return read_record(self.environment_path, Environment)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; needs the key `step`. A float that is not finite is written as null.

        Raises:
            RunFolderError: writing failed; says up to which step the file is intact.
        """
        append_records(self.metrics_path, [metrics])

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines in order, with current names for metrics of an earlier version.

        Raises:
            RunFolderError: a line is broken, or has no step; names it.
        """
        return list(read_lines(self.metrics_path, parse_metrics))

    def write_rollouts(self, records: Sequence[RolloutRecord], images: Mapping[str, Image.Image]) -> None:
        """Append rollout records and save their images; the `rollout_writer` of the trainer.

        Args:
            records: of `vgpo.training.records.rollout_records`.
            images: by the paths in the records. Existing ones are not written again.

        Raises:
            RunFolderError: writing failed; none of these records was written.
        """
        self.rollouts.write(records, images)

    def read_rollouts(self) -> Iterator[RolloutRecord]:
        """Yield the records in order, one at a time (the file may be larger than memory).

        Raises:
            RunFolderError: a line is broken, lacks a field, or is of a newer version; names it.
        """
        return self.rollouts.read()

    def read_resumes(self) -> list[Resume]:
        """Return what `resume` recorded, in order: `step`, `changes`, and the fields of environment.json then."""
        return list(read_lines(self.resumes_path, parser_of(Resume)))

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        """Write the values that must be unchanged when the run is resumed, by name."""
        write_file(self.identity_path, to_json(identity, indent=2) + b"\n")

    def read_identity(self) -> dict[str, Any]:
        """Return what `write_identity` wrote.

        Raises:
            RunFolderError: run_identity.json is missing or damaged.
        """
        return read_object(self.identity_path)

    def write_saved(self, step: int) -> None:
        """Note that the checkpoint of this step was saved."""
        write_file(self.saved_path, to_json({"step": step}) + b"\n")

    def read_saved(self) -> int | None:
        """Return the step of the checkpoint that was saved last; None if none was, or a power cut lost the record."""
        try:
            return read_record(self.saved_path, Saved).step
        except RunFolderError:
            return None

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Write `{"before": {...}, "after": {...}}`, each the fields of `vgpo.evaluation.Evaluation`."""
        write_file(self.evaluation_path, to_json(evaluation, indent=2) + b"\n")

    def write_parity(self, parity: Mapping[str, Any]) -> None:
        """Write the results of the parity check: the fields of `vgpo.policy.parity.Parity`."""
        write_file(self.path / "parity.json", to_json(parity, indent=2) + b"\n")

    def read_evaluation(self) -> dict[str, Any] | None:
        """Return what `write_evaluation` wrote, None before it was called.

        Raises:
            RunFolderError: evaluation.json is broken or incomplete; names the field.
        """
        if not self.evaluation_path.exists():
            return None
        evaluation = read_object(self.evaluation_path)
        for when, scores in evaluation.items():
            if scores is not None:
                check_record(Scores, scores, f"{self.evaluation_path}, {when}")
        return evaluation

    def write_finished(self, step: int, epoch: float) -> None:
        """Mark the run as finished: trained up to `step`, saved, evaluated and reported. The last file of a run.

        Raises:
            RunFolderError: writing failed.
        """
        write_file(self.finished_path, to_json({"step": step, "epoch": epoch, "time": time.time()}, indent=2) + b"\n")

    def read_finished(self) -> Finished | None:
        """Return the mark of a finished run, None if it is not finished or its final weights were removed."""
        if not self.finished_path.exists():
            return None
        finished = read_record(self.finished_path, Finished)
        return finished if self.final_path.is_dir() else None

    def write_interrupted(self, step: int, error: BaseException) -> None:
        """Leave a mark that an error or a signal has ended the run: `step`, `time` (seconds since 1970), `reason`.

        Raises:
            RunFolderError: writing failed.
        """
        mark = {"step": step, "time": time.time(), "reason": reason_of(error)}
        write_file(self.interrupted_path, to_json(mark, indent=2) + b"\n")

    def read_interrupted(self) -> Interrupted | None:
        """Return the mark of an interrupted run; None for one that is running, finished, or was killed."""
        return read_record(self.interrupted_path, Interrupted) if self.interrupted_path.exists() else None


def parse_metrics(line: bytes, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl, with current metric names.

    Raises:
        RunFolderError: it is broken, or has no step; names `where`.
    """
    metrics = parse_object(line, where)
    check_record(MetricsLine, metrics, where)
    return with_current_names(metrics)


def reason_of(error: BaseException) -> str:
    """The signal behind an exit status, or type and first line of an error."""
    if isinstance(error, SystemExit) and error.code in STATUS_OF_SIGNALS:
        return STATUS_OF_SIGNALS[error.code]
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:MAX_REASON]
