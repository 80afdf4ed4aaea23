"""The folder of one run of a study: a run folder with its recipe, grounding measurements, evaluation and seal."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vgpo.run import RunFolder
from vgpo.run.storage import read_object, to_json, write_file
from vgpo.suite.folder import EvaluationFolder

SEAL = "done.json"
RECIPE = "recipe.yaml"
PROBE = "probe.json"
USAGE = "usage.json"
SUITE = "suite.yaml"
HELD_OUT = "held_out_sets.yaml"
EVALUATION = "suite"
# Files from which tables and curves are computed.
SEALED = (
    RECIPE, PROBE, USAGE, "metrics.jsonl", "evaluation.json", "environment.json", SUITE, HELD_OUT,
    f"{EVALUATION}/scores.json",
)  # fmt: skip


@dataclass(frozen=True)
class StudyRun:
    """The files of one run. It is done once it is sealed: `done.json`, written last, holds the SHA-256 of the rest.

    A run that is done cannot be resumed: all checkpoints except the last are deleted.
    """

    path: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE

    @property
    def probe_path(self) -> Path:
        return self.path / PROBE

    @property
    def usage_path(self) -> Path:
        return self.path / USAGE

    @property
    def suite_path(self) -> Path:
        """The benchmarks of the run; missing if the study has no suite."""
        return self.path / SUITE

    @property
    def held_out_path(self) -> Path:
        """Further sets that the run is evaluated on, by name; missing where there are none."""
        return self.path / HELD_OUT

    @property
    def evaluation(self) -> EvaluationFolder:
        """Answers and scores of that."""
        return EvaluationFolder(self.path / EVALUATION)

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def final_path(self) -> Path:
        """Weights of the trained model."""
        return self.folder.final_path

    @property
    def has_begun(self) -> bool:
        """Whether the run has begun: its training wrote `config.yaml`, its model was evaluated, or it is done."""
        return (self.path / "config.yaml").is_file() or self.folder.evaluation_path.is_file() or self.is_done

    @property
    def is_trained(self) -> bool:
        """Whether training and evaluation are over; the weights are written before the evaluation."""
        return "after" in (self.folder.read_evaluation() or {}) and self.final_path.is_dir()

    def seal(self) -> None:
        """Mark the run as done; the last step of a run.

        Raises:
            RunFolderError: Writing failed.
        """
        write_file(self.path / SEAL, to_json({"files": self._digests()}, indent=2) + b"\n")

    def unseal(self) -> None:
        """Mark the run as not done."""
        (self.path / SEAL).unlink(missing_ok=True)

    @property
    def is_done(self) -> bool:
        return (self.path / SEAL).is_file()

    def changed_files(self) -> list[str]:
        """The files of a done run that have changed since it was sealed.

        Raises:
            RunFolderError: The seal cannot be read.
        """
        sealed, found = read_object(self.path / SEAL).get("files", {}), self._digests()
        return sorted(name for name in sealed.keys() | found.keys() if sealed.get(name) != found.get(name))

    def _digests(self) -> dict[str, str]:
        files = [self.path / name for name in SEALED]
        return {
            file.relative_to(self.path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file()
        }
