"""Questions to inspect: rows of a dataset, or those of a run with its stored responses."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from vgpo.data import to_prompts
from vgpo.data.schema import IMAGE_MARK
from vgpo.evaluation.grounding import SwappedImages, with_blank_images, with_other_images
from vgpo.inspection.schema import BLANK, OTHER, RESAMPLED
from vgpo.run import RunFolder
from vgpo.training.records import RolloutRecord

Row = Mapping[str, Any]
STEP = re.compile(r"checkpoint-(\d+)$")


class StoredRolloutsError(ValueError):
    """A run's stored rollouts cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Stored:
    """An existing response.

    Attributes:
        token_ids: With the end token, if it has one.
        advantage: Its A_i in training; None if it has none.
    """

    token_ids: list[int]
    advantage: float | None = None


@dataclass(frozen=True)
class Question:
    """A row from `vgpo.data.to_prompts` to inspect.

    Attributes:
        number: Its row number.
        row: `prompt`, `images`, `problem`, `answer`, and `meta` if present.
        others: The same row with other images, by ablation; None if there are none.
        stored: Its responses, or empty if they are to be generated.
    """

    number: int
    row: Row
    others: Mapping[str, Row | None] = field(default_factory=dict)
    stored: Sequence[Stored] = ()


def questions_of(
    rows: Dataset | Sequence[Row],
    numbers: Sequence[int],
    *,
    ablations: Sequence[str] = (),
    stored: Sequence[Sequence[Stored]] | None = None,
) -> Iterator[Question]:
    """Yields the rows as questions.

    Args:
        rows: From `vgpo.data.to_prompts`.
        numbers: Their row numbers.
        ablations: Further images for each question: a blank one, that of the next question with as many images, or its
        own again.
        stored: The responses to each, if they exist.
    """
    views = {name: with_ablated_images(name, rows) for name in ablations}
    places = {name: {row: place for place, row in enumerate(view.order)} for name, view in views.items()}
    for i, number in enumerate(numbers):
        others = {name: view[places[name][i]] if i in places[name] else None for name, view in views.items()}
        yield Question(number, rows[i], others, stored[i] if stored else ())


def with_ablated_images(name: str, rows: Dataset | Sequence[Row]) -> SwappedImages:
    """The rows that have images, with the images of this ablation."""
    if name == OTHER:
        return with_other_images(rows)
    with_images = [place for place, row in enumerate(rows) if row["images"]]
    if name == BLANK:
        return with_blank_images(rows, with_images)
    assert name == RESAMPLED
    return SwappedImages(rows, with_images, lambda number, row: row["images"])


@dataclass(frozen=True)
class QuestionSet:
    """Questions to inspect, and the origin of their responses; fields as in `questions_of`.

    Attributes:
        stored: None if responses are to be generated.
        steps: The first and last step at which they were stored.
    """

    rows: Dataset
    numbers: list[int]
    stored: list[list[Stored]] | None = None
    steps: tuple[int, int] | None = None

    @property
    def responses(self) -> dict[str, Any] | None:
        """The file's record of stored responses."""
        return None if self.steps is None else {"from": "rollouts", "steps": list(self.steps)}


Group = tuple[int, int]  # step, and number in the step


def stored_questions(folder: RunFolder, checkpoint: Path, template: str, requested: Sequence[int]) -> QuestionSet:
    """The last rollouts that a run stored before a checkpoint, newest step first.

    Args:
        folder: Run folder.
        checkpoint: `checkpoint-<step>`; any other name means the end of the run.
        template: Prompt template of the run.
        requested: Indices of stored groups, 0 for the first of the newest step; indices beyond the last are ignored.

    Raises:
        StoredRolloutsError: The run stored none, or one that cannot be used (`stored_response`).
    """
    members = read_groups(folder, checkpoint, requested)
    firsts = [group[0] for group in members.values()]
    columns = {
        "images": [[str(folder.path / name) for name in first.media] for first in firsts],
        # The stored images are in the order of the marks, numbered or not.
        "problem": [IMAGE_MARK.sub("<image>", first.problem) for first in firsts],
        "answer": [first.answer or "" for first in firsts],
    }
    return QuestionSet(
        rows=to_prompts(Dataset.from_dict(columns), template),
        numbers=[first.row for first in firsts],
        stored=[[stored_response(record, folder) for record in group] for group in members.values()],
        steps=(min(step for step, _ in members), max(step for step, _ in members)),
    )


def stored_response(record: RolloutRecord, folder: RunFolder) -> Stored:
    """The response of a rollout.

    Raises:
        StoredRolloutsError: An older version stored it without token ids, or its advantage is not finite.
    """
    if record.token_ids is None or record.advantage is None:
        raise StoredRolloutsError(
            f"{folder.rollouts_path}: found a rollout of step {record.step} without token_ids or without a finite "
            "advantage; name a dataset with --data to generate new answers"
        )
    return Stored(record.token_ids, record.advantage)


def read_groups(folder: RunFolder, checkpoint: Path, requested: Sequence[int]) -> dict[Group, list[RolloutRecord]]:
    """The records of each requested group, numbered as in `stored_questions`.

    Raises:
        StoredRolloutsError: None of them exists.
    """
    place = STEP.search(checkpoint.name)
    last = int(place[1]) if place else None
    groups: dict[Group, list[int]] = {}
    for line, record in enumerate(folder.read_rollouts()):
        if last is None or record.step <= last:
            groups.setdefault((record.step, record.group), []).append(line)
    newest = sorted(groups, key=lambda key: (-key[0], key[1]))
    chosen = [newest[i] for i in requested if i < len(newest)]
    if not chosen:
        raise StoredRolloutsError(
            f"{folder.rollouts_path} has {len(newest)} groups of rollouts up to {checkpoint.name}, and none of those "
            "requested; name a dataset with --data to generate new answers"
        )
    # Read again, so that only requested records are kept.
    lines = {line for key in chosen for line in groups[key]}
    records = {line: record for line, record in enumerate(folder.read_rollouts()) if line in lines}
    return {key: [records[line] for line in groups[key]] for key in chosen}
