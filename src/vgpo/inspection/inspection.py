"""An inspection as data: a JSON file with one question per line, written and read as a stream."""

import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgpo.inspection.schema import PER_TOKEN, InspectionError, check_head, check_question
from vgpo.run.storage import to_json, write_file

if TYPE_CHECKING:
    import pandas

QUESTIONS = b'"questions": [\n'
HEIGHT = 800  # pixels of the page in a notebook


@dataclass(frozen=True)
class Inspection:
    """Where one or two models look while they answer questions; the content of its file (docs/inspect.md).

    Displayed as its page in a notebook.

    Attributes:
        data: The file's content.

    Raises:
        InspectionError: `data` is not an inspection; names the place and the expected value.
    """

    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_head(self.data, "this inspection")
        for place, question in enumerate(self.data["questions"]):
            check_question(question, len(self.data["models"]), f"this inspection, question {place}")

    @classmethod
    def read(cls, path: Path | str) -> "Inspection":
        """Read an inspection file completely.

        Raises:
            InspectionError: It is not an inspection; names the file.
        """
        data = parsed(Path(path).read_bytes(), str(path))
        try:
            return cls(data)
        except InspectionError as error:
            raise InspectionError(f"{path}: {error}") from error

    def write(self, path: Path | str) -> None:
        """Write the file atomically; an existing one is replaced."""
        write_inspection(Path(path), self.head, self.questions)

    @property
    def head(self) -> dict[str, Any]:
        """Everything except the questions."""
        return {name: value for name, value in self.data.items() if name != "questions"}

    @property
    def questions(self) -> list[dict[str, Any]]:
        return self.data["questions"]

    def compared_with(self, other: "Inspection") -> "Inspection":
        """Merge two inspections of one model each, over the same questions.

        Raises:
            InspectionError: They have more models, or different questions.
        """
        head = compared_heads(self.head, other.head)
        return Inspection({**head, "questions": list(compared_questions(self.questions, other.questions))})

    def to_html(self) -> str:
        """The page: one self-contained file."""
        from vgpo.inspection.page import render_inspection

        return render_inspection(self.data)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per token: its position, its values, and the fields of its response."""
        import pandas

        return pandas.DataFrame(
            [
                row
                for question in self.questions
                for rollout in question["rollouts"]
                for row in token_rows(question, rollout, self.data["models"][rollout["model"]]["name"])
            ]
        )

    def __repr__(self) -> str:
        models = [model["name"] for model in self.data["models"]]
        return f"Inspection({len(self.questions)} questions, models {models})"

    def _repr_html_(self) -> str:
        # In a sandboxed frame without the notebook's origin: the page contains model output.
        return (
            f'<iframe sandbox="allow-scripts" width="100%" height="{HEIGHT}" '
            f'srcdoc="{html.escape(self.to_html())}"></iframe>'
        )


PER_ROLLOUT = ("rollout_factor", "late_early_ratio", "predicted", "correct", "truncated")


def token_rows(question: Mapping[str, Any], rollout: Mapping[str, Any], model: str) -> Iterator[dict[str, Any]]:
    for position, token in enumerate(rollout["tokens"]):
        yield {
            "row": question["row"],
            "model": model,
            "sample": rollout["sample"],
            "position": position,
            "token": token,
            **{name: rollout[name] and rollout[name][position] for name in PER_TOKEN},
            **{f"attention_{source}": shares[position] for source, shares in (rollout["attention"] or {}).items()},
            **{name: rollout[name] for name in PER_ROLLOUT},
        }


def write_inspection(path: Path, head: Mapping[str, Any], questions: Iterable[Mapping[str, Any]]) -> None:
    """Write an inspection file question by question, in constant memory.

    Raises:
        RunFolderError: Writing failed; an older file is unchanged.
    """
    write_file(path, encoded(head, questions))


def encoded(head: Mapping[str, Any], questions: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    yield to_json(head)[:-1] + b", " + QUESTIONS
    separator = b""
    for question in questions:
        yield separator + to_json(question)
        separator = b",\n"
    yield b"\n]}\n"


def read_head(path: Path) -> dict[str, Any]:
    """Everything except the questions of a file from `write_inspection`; errors as in `Inspection.read`."""
    with path.open("rb") as lines:
        return parse_head(lines.readline(), path)


def iter_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the questions of a file from `write_inspection`; errors as in `Inspection.read`."""
    with path.open("rb") as lines:
        num_models = len(parse_head(lines.readline(), path)["models"])
        for number, line in enumerate(lines, start=2):
            if line == b"]}\n":
                return
            where = f"{path}, line {number}"
            if not line.strip():
                continue  # an inspection without questions
            question = parsed(line.rstrip().removesuffix(b","), where)
            check_question(question, num_models, where)
            yield question
    raise InspectionError(f"{path}: the file is truncated; re-create it with `vgpo inspect`")


def parse_head(line: bytes, path: Path) -> dict[str, Any]:
    if not line.endswith(QUESTIONS):
        raise InspectionError(
            f"{path}: its first line does not end in {QUESTIONS.decode().strip()}, as `vgpo inspect` writes it; read "
            "it with Inspection.read, or re-create it"
        )
    head = parsed(line + b"]}", f"{path}, line 1")
    check_head(head, str(path))
    return {name: value for name, value in head.items() if name != "questions"}


def parsed(text: bytes, where: str) -> Any:
    """Parse JSON.

    Raises:
        InspectionError: The text is not valid JSON; names `where`.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InspectionError(f"{where}: not valid JSON ({error}); re-create it with `vgpo inspect`") from error


def compared_heads(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the heads of two inspections.

    Raises:
        InspectionError: There are more than two models, or their settings differ.
    """
    if len(first["models"]) != 1 or len(second["models"]) != 1:
        raise InspectionError(
            f"the inspections are of {len(first['models'])} and {len(second['models'])} models; expected one each"
        )
    for name in ("settings", "responses"):
        one, other = ({**head[name], "seed": None} for head in (first, second))  # sampling seeds may differ
        if one != other:
            raise InspectionError(
                f"the inspections differ in {name}: {first[name]} and {second[name]}; inspect both in the same way"
            )
    return {**first, "models": [*first["models"], *second["models"]]}


def compared_questions(
    first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the questions of two inspections with the rollouts of both.

    Raises:
        InspectionError: The questions, or their patch grids, differ.
    """
    for one, other in zip_longest(first, second):
        if one is None or other is None:
            raise InspectionError("one of the inspections has more questions; inspect the same rows with both models")
        for name in ("row", "problem", "answer", "grids"):
            if one[name] != other[name]:
                raise InspectionError(
                    f"row {one['row']}: the inspections differ in {name!r}; compare models of one family and with the "
                    "same pixel limits, on the same rows and with the same template"
                )
        theirs = [{**rollout, "model": 1} for rollout in other["rollouts"]]
        yield {**one, "rollouts": [*one["rollouts"], *theirs]}
