"""Records of a run's files, with the fields that readers need; the files may contain more."""

import hashlib
from typing import Any

from pydantic import ConfigDict, Field

from vgpo.records import Record


class RunRecord(Record):
    """A part of a run's files. Further keys are attributes too."""

    model_config = ConfigDict(extra="allow")


class Environment(RunRecord):
    """environment.json: what `vgpo.run.environment.describe_environment` found."""

    commit: str | None
    dirty: bool | None
    cpu_count: int | None
    devices: list[str]
    seed: int
    started: str
    command: list[str] = Field(default_factory=list)
    """The words of the command line; runs of other programs may have none."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Defaults of the settings that differ from them; empty in runs of older versions."""


class Resume(RunRecord):
    """A line of resumes.jsonl: the step from which the run was resumed, and the environment."""

    step: int
    started: str


class Finished(RunRecord):
    """finished.json."""

    step: int
    epoch: float
    time: float
    """Seconds since 1970."""


class Interrupted(RunRecord):
    """interrupted.json."""

    step: int
    time: float
    """Seconds since 1970."""
    reason: str


class FolderState(Record):
    """run_folder.json of a checkpoint: state of the run folder when it was saved. The default is a new folder."""

    metrics_bytes: int = 0
    metrics_sha256: str = hashlib.sha256().hexdigest()
    rollouts_written: int = 0
    """Bytes, as `RolloutLog.written`."""
    rollouts: dict[str, str] = Field(default_factory=dict)
    """By step, a digest of its lines in rollouts.jsonl, for all kept steps."""
    evaluation: dict[str, Any] | None = None


class Saved(RunRecord):
    """newest_checkpoint.json and rollouts_dropped.json: the step that was saved, or dropped, last."""

    step: int


class Scores(RunRecord):
    """evaluation.json before or after training: held-out accuracy with its 95 % interval, in [0, 1]."""

    accuracy: float
    low: float
    high: float
    num_questions: int
    num_correct: int


class MetricsLine(Record):
    """A line of metrics.jsonl; its other keys are metrics."""

    step: float
