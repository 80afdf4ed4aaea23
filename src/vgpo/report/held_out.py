"""Held-out answers of a run: what training fixed and broke, and runs compared question by question."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from vgpo.pages import embed_json
from vgpo.pages.texts import MAX_TEXT_CHARACTERS, truncate
from vgpo.records import Record
from vgpo.resampling import mean_interval
from vgpo.run.folder import RunFolder
from vgpo.run.storage import check_record

SCORES = ("accuracy", "low", "high", "num_questions", "num_correct")
MAX_ANSWER_CHARACTERS = 400
MAX_COMPLETION_CHARACTERS = 2000
# (right before, right after) -> outcome, in the order in which questions are shown.
OUTCOMES = {(False, True): "fixed", (True, False): "broken", (False, False): "wrong", (True, True): "right"}


class HeldOutAnswer(Record):
    """An answer in evaluation.json."""

    problem: str
    answer: str
    """The reference answer."""
    completion: str
    predicted: str | None
    """The boxed answer."""
    truncated: bool
    correct: bool
    oversized: bool = False
    """The question was not asked; files of older versions do not say."""


class HeldOutAnswers(Record):
    """The answers of one evaluation, in the order of the questions; files of older versions may have none."""

    answers: list[HeldOutAnswer] = Field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, in [-1, 1], with its 95 % interval; basis: what the interval is of."""

    points: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True)
class HeldOut:
    """What evaluation.json holds before and after training: scores (`SCORES`; None if not measured), and answers."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    answers_before: Sequence[HeldOutAnswer]
    answers_after: Sequence[HeldOutAnswer]

    @property
    def is_paired(self) -> bool:
        """Whether the same questions were answered before and after training."""
        return same_questions(self.answers_before, self.answers_after)

    def describe(self) -> dict[str, Any]:
        """The scores, and the change by training."""
        return {"before": self.before, "after": self.after, "change": change(self.before, self.after)}

    def outcomes(self) -> list[str]:
        """Of each question whether training fixed or broke it; "right" or "wrong" if it did neither, or is unknown."""
        first = self.answers_before if self.is_paired else self.answers
        return [OUTCOMES[before.correct, after.correct] for before, after in zip(first, self.answers, strict=True)]

    @property
    def answers(self) -> Sequence[HeldOutAnswer]:
        """The newest answers."""
        return self.answers_after or self.answers_before

    def questions(self, budget: int) -> dict[str, Any] | None:
        """What the page shows of the questions; None without answers.

        Args:
            budget: Bytes that they may take in the page.

        Returns:
            dict: `is_paired`; `counts` of the outcomes of all questions; `entries`, those that fit, fixed and broken
            ones first: `number` (from 1), `problem`, `answer`, `outcome`, and `before` (None unless paired) and
            `after`.
        """
        if not self.answers:
            return None
        outcomes = self.outcomes()
        order = sorted(range(len(outcomes)), key=lambda place: list(OUTCOMES.values()).index(outcomes[place]))
        entries = []
        for place in order:
            entry = self._entry(place, outcomes[place])
            budget -= len(embed_json(entry))
            if budget < 0:
                break
            entries.append(entry)
        return {"is_paired": self.is_paired, "counts": dict(Counter(outcomes)), "entries": entries}

    def _entry(self, place: int, outcome: str) -> dict[str, Any]:
        answer = self.answers[place]
        return {
            "number": place + 1,
            "problem": truncate(answer.problem, MAX_TEXT_CHARACTERS),
            "answer": truncate(answer.answer, MAX_ANSWER_CHARACTERS),
            "outcome": outcome,
            "before": answer_entry(self.answers_before[place]) if self.is_paired else None,
            "after": answer_entry(answer),
        }


def read_held_out(folder: RunFolder) -> HeldOut | None:
    """What a run's evaluation.json holds; None if there is none.

    Raises:
        RunFolderError: The file is broken, or an answer in it; names the answer.
    """
    evaluation = folder.read_evaluation()
    if evaluation is None:
        return None

    def scores(when: str) -> dict[str, Any] | None:
        found = evaluation.get(when)
        return found and {name: found[name] for name in SCORES}

    def answers(when: str) -> Sequence[HeldOutAnswer]:
        found = evaluation.get(when)
        return check_record(HeldOutAnswers, found, f"{folder.evaluation_path}, {when}").answers if found else []

    return HeldOut(scores("before"), scores("after"), answers("before"), answers("after"))


def answer_entry(answer: HeldOutAnswer) -> dict[str, Any]:
    return {
        "completion": truncate(answer.completion, MAX_COMPLETION_CHARACTERS),
        "predicted": None if answer.predicted is None else truncate(answer.predicted, MAX_ANSWER_CHARACTERS),
        "correct": answer.correct,
        "truncated": answer.truncated,
        "oversized": answer.oversized,
    }


def same_questions(first: Sequence[HeldOutAnswer], second: Sequence[HeldOutAnswer]) -> bool:
    """Whether these are answers to the same questions in the same order, and there are any."""
    wordings = [[(one.problem, one.answer) for one in answers] for answers in (first, second)]
    return bool(first) and wordings[0] == wordings[1]


def compare(base: HeldOut, other: HeldOut) -> Difference | None:
    """The accuracy of one run after training less that of another; None if one was not measured.

    The interval is that of the paired bootstrap if both answered the same questions, else Newcombe's.
    """
    if base.after is None or other.after is None:
        return None
    if same_questions(base.answers_after, other.answers_after):
        pairs = zip(base.answers_after, other.answers_after, strict=True)
        values = np.array([float(after.correct) - before.correct for before, after in pairs])
        low, high = mean_interval(values)
        return Difference(float(values.mean()), low, high, f"{len(values):,} questions, paired")
    counts = [f"{scores['num_questions']:,}" for scores in (base.after, other.after)]
    basis = f"{' and '.join(dict.fromkeys(counts))} questions, unpaired"
    return Difference(**newcombe(base.after, other.after), basis=basis)


def change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The change by training; None if one of the two was not measured."""
    return None if before is None or after is None else newcombe(before, after)


def newcombe(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """Return the difference of two proportions with Newcombe's 95 % interval from their Wilson intervals.

    It takes the two as independent; on the same questions it errs on the wide side.
    """
    points = second["accuracy"] - first["accuracy"]
    below = math.hypot(second["accuracy"] - second["low"], first["high"] - first["accuracy"])
    above = math.hypot(second["high"] - second["accuracy"], first["accuracy"] - first["low"])
    return {"points": points, "low": points - below, "high": points + above}
