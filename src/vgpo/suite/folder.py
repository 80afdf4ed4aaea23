"""The evaluation folder: answers of one checkpoint on a suite of benchmarks, verdicts and scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from vgpo.evaluation.answers import Answer, GradedAnswer
from vgpo.records import Record, describe_value
from vgpo.run.storage import (
    RunFolderError,
    append_lines,
    check_record,
    last_complete_line,
    parser_of,
    read_bytes,
    read_lines,
    read_object,
    to_json,
    write_file,
)

VERSION: Literal[1] = 1
RERUN = "run the same `vgpo eval` command again, which asks only the rows that are missing"
REGRADE = "delete it and run the same `vgpo eval` command again, which grades the stored answers"

# Part of the names of files, so that no record can lead a reader out of its folder.
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
A = TypeVar("A", bound=Answer)


class TaskRecord(Record):
    """Where the rows of a task come from, and which of them were asked.

    Attributes:
        source: As `vgpo.evaluation.benchmark_rows.load_benchmark` takes it.
        format: How the rows are written, where the user has named it.
        columns: Columns of the source that are read as others, by the names that they are read as.
        form: As in `BenchmarkRows`.
        fingerprint: Of `BenchmarkRows.dataset`, as `vgpo.data.fingerprint` finds it: the rows that were asked, and
            those that are oversized.
        num_rows: As in `BenchmarkRows`: with rows that were dropped or that a limit left out.
        num_asked: Rows that were asked; each has answers.
        oversized: Numbers, in the source, of the rows whose prompt does not fit into the model.
        dropped: What is wrong with each row that could not be used.
    """

    source: str
    format: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    form: str
    fingerprint: str
    num_rows: int = Field(ge=0)
    num_asked: int = Field(ge=0)
    oversized: list[int]
    dropped: list[str]


class EvaluationRecord(Record):
    """evaluation.json: what was evaluated, and how.

    Attributes:
        version: Of the files in the folder.
        checkpoint: As on the command line.
        checkpoint_digest: Of its weights; tells two checkpoints of one name apart.
        dtype: Of the weights, as on the command line.
        engine: What generated: "transformers" or "vllm".
        protocol: Name of sampling and scorer, as `vgpo.evaluation.protocols` has it.
        template: Prompt template.
        chat_template_kwargs: Of the chat template, as in training.
        max_new_tokens: Longest response, in tokens.
        image_size: Limits of the image processor, by their names there.
        seed: Draws the responses where they are sampled.
        limit: Rows asked per task at most; None for all.
        tasks: By the name of the benchmark.
    """

    version: Literal[1] = VERSION
    checkpoint: str
    checkpoint_digest: str
    engine: str
    dtype: str = "auto"
    protocol: str
    template: str
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_new_tokens: int = Field(gt=0)
    image_size: dict[str, int | None]
    seed: int
    limit: int | None
    tasks: dict[TaskName, TaskRecord]


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of one evaluation. The constructor touches nothing.

    Only one process may write: hold `vgpo.run.locked` on `path`.
    """

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> "EvaluationFolder":
        """Open the folder of an existing evaluation.

        Raises:
            RunFolderError: There is no evaluation in it.
        """
        folder = cls(Path(path))
        if not folder.exists:
            raise RunFolderError(
                f"{folder.path} holds no evaluation: evaluation.json is missing, or is that of a run. Pass the folder "
                "that `vgpo eval --suite` wrote."
            )
        return folder

    @property
    def exists(self) -> bool:
        """Whether the folder holds an evaluation; a run folder has an evaluation.json too, and config.yaml."""
        return self.record_path.is_file() and not self.holds_run

    @property
    def holds_run(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def record_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def scores_path(self) -> Path:
        return self.path / "scores.json"

    @property
    def score_table_path(self) -> Path:
        return self.path / "scores.csv"

    @property
    def logs_path(self) -> Path:
        """Folder of inspect-ai's logs."""
        return self.path / "logs"

    def answers_path(self, task: str) -> Path:
        return self.path / "answers" / f"{task}.jsonl"

    def graded_path(self, task: str) -> Path:
        return self.path / "graded" / f"{task}.jsonl"

    def write_record(self, record: EvaluationRecord) -> None:
        """Write evaluation.json.

        Raises:
            RunFolderError: The folder holds a run, whose evaluation.json this would replace; or writing failed.
        """
        self._refuse_run()
        write_file(self.record_path, to_json(record.model_dump(), indent=2) + b"\n")

    def read_record(self) -> EvaluationRecord:
        """Return what `write_record` wrote.

        Raises:
            RunFolderError: The folder holds a run; or evaluation.json cannot be read, lacks a field or is of another
                version; names it.
        """
        self._refuse_run()
        value = read_object(self.record_path)
        if value.get("version") != VERSION:
            raise RunFolderError(
                f"{self.record_path}: found version {describe_value(value.get('version'))}, expected {VERSION}; read "
                "the evaluation with the vgpo that wrote it."
            )
        return check_record(EvaluationRecord, value, str(self.record_path))

    def _refuse_run(self) -> None:
        if self.holds_run:
            raise RunFolderError(f"{self.path} holds a run (config.yaml); choose another folder for the evaluation.")

    def append_answers(self, task: str, answers: Iterable[Answer]) -> None:
        """Append answers, all or none; they are on the disk when this returns. A torn last line is cut off first.

        Raises:
            RunFolderError: Writing failed; the file ends at the last complete line that it had before.
        """
        path = self.answers_path(task)
        make_folder(path.parent)
        append_lines(path, lines_of(answers), then=RERUN)

    def read_answers(self, task: str) -> list[Answer]:
        """Return the answers in the order of the file; a last line that was never finished is left out.

        Raises:
            RunFolderError: Another line is damaged, or answers a second time what an earlier one does; names it.
        """
        return distinct(read_lines(self.answers_path(task), parser_of(Answer)), self.answers_path(task))

    def write_graded(self, task: str, graded: Iterable[GradedAnswer]) -> None:
        """Write the verdicts of a task, in place of older ones.

        Raises:
            RunFolderError: Writing failed; an older file is as it was.
        """
        write_file(self.graded_path(task), lines_of(graded))

    def read_graded(self, task: str) -> list[GradedAnswer]:
        """Return what `write_graded` wrote.

        Raises:
            RunFolderError: The file is missing, a line is damaged or unfinished, or two are about the same answer;
                names it.
        """
        path = self.graded_path(task)
        if not path.is_file():
            raise RunFolderError(f"{path} is missing; {RERUN}.")
        if last_complete_line(path)[0] != path.stat().st_size:
            raise RunFolderError(f"{path} ends in an unfinished line; {REGRADE}.")
        return distinct(read_lines(path, parser_of(GradedAnswer)), path)

    def write_scores(self, scores: Mapping[str, Any], table: str) -> None:
        """Write scores.json and scores.csv.

        Args:
            scores: What JSON can hold; a float that is not finite is written as null.
            table: Text of the CSV file.

        Raises:
            RunFolderError: Writing failed.
        """
        write_file(self.scores_path, to_json(scores, indent=2) + b"\n")
        write_file(self.score_table_path, table.encode("utf-8"))

    def read_scores(self) -> dict[str, Any]:
        """Return the content of scores.json.

        Raises:
            RunFolderError: It cannot be read, or is not JSON object.
        """
        return read_object(self.scores_path)

    def read_score_table(self) -> str:
        """Return the text of scores.csv.

        Raises:
            RunFolderError: It cannot be read.
        """
        return read_bytes(self.score_table_path).decode("utf-8", errors="replace")


def make_folder(path: Path) -> None:
    """Raises:
    RunFolderError: The folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{path} could not be created: {error.strerror}. Choose another output folder."
        ) from error


def lines_of(records: Iterable[Record]) -> bytes:
    return b"".join(to_json(record.model_dump()) + b"\n" for record in records)


def distinct(answers: Iterable[A], path: Path) -> list[A]:
    """The answers of a file.

    Raises:
        RunFolderError: Two are of the same row and sample; names both lines.
    """
    lines: dict[tuple[int, int], int] = {}
    found: list[A] = []
    for number, answer in enumerate(answers, start=1):
        earlier = lines.setdefault((answer.row, answer.sample), number)
        if earlier != number:
            raise RunFolderError(
                f"{path}, line {number}: found row {answer.row}, sample {answer.sample} a second time, the first is "
                f"on line {earlier}; delete one of the two lines."
            )
        found.append(answer)
    return found
