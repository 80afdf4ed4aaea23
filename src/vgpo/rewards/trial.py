"""Test whether rewards distinguish correct from wrong answers."""

import asyncio
import faulthandler
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import TrainerState

from vgpo.answers import choice_letter, is_words
from vgpo.references import why_never_equal
from vgpo.rewards.checked import RewardFunction, is_async, reward_name, with_prefix
from vgpo.rewards.functions import END_THINK, THINK, accuracy_reward, lenient_accuracy_reward

REFERENCE, MISMATCHED = "reference answer", "another row's answer"
WRITTEN = "as a model writes it"
NOTHING, EMPTY_BOX = "empty response", "empty box"
ADVERSARIAL_ANSWERS = {
    "10,000 characters": "7" * 10_000,
    "power tower": "9^{9^{9^{9}}}",
    "slow power": "9**(9*9*9*9*9*9*9*9*9)",
}
RIGHT = (REFERENCE, WRITTEN)
ANSWER_KINDS = (REFERENCE, WRITTEN, MISMATCHED, NOTHING, EMPTY_BOX, *ADVERSARIAL_ANSWERS)

BUILT_IN = tuple(map(reward_name, (accuracy_reward, lenient_accuracy_reward)))
TOLERANCE = 1e-6
NEAR_ZERO = 0.1  # on average: another row's answer is sometimes correct, such as 1/2 for 0.5
TELLS_APART = 0.1  # a reward whose means differ by this much grades answers
ROWS_AT_ONCE = 32  # whose images are held together
ADVERSARIAL_ROWS = 2  # each may take the grader's whole time limit
HANG_SECONDS = 120.0
STANDARD_ERROR = 2  # of the process, whatever sys.stderr is
NUM_SLOWEST = 5
NUM_SHOWN = 10


@dataclass
class ScoreTable:
    """Scores of one reward for one kind of answer, by dataset row; None where it did not apply."""

    kind: str
    scores: dict[int, float | None] = field(default_factory=dict)

    @property
    def applied(self) -> dict[int, float]:
        return {row: score for row, score in self.scores.items() if score is not None}

    @property
    def mean(self) -> float | None:
        return sum(self.applied.values()) / len(self.applied) if self.applied else None

    @property
    def failing_rows(self) -> list[int]:
        """Rows whose reference answer does not score 1, or whose wrong answer scores more than 0."""
        if self.kind in RIGHT:
            return [row for row, score in self.applied.items() if abs(score - 1) > TOLERANCE]
        return [row for row, score in self.applied.items() if score > TOLERANCE]


@dataclass(frozen=True, order=True)
class Timing:
    """Seconds that one reward took over one answer."""

    seconds: float
    reward: str
    kind: str
    row: int
    answer: str


class RewardTest:
    """Run rewards on answers with known scores: reference answers, those of other rows, no answer, and costly answers.

    rewards: of `load_reward`. think: whether responses begin with a thought. response_prefix: how the chat template
    begins each response, see `format_reward`. tokenizer: gives `completion_ids`, which are empty without one.
    exempt: names of rewards that are shown but not checked.
    """

    def __init__(
        self,
        rewards: Sequence[RewardFunction],
        *,
        think: bool,
        response_prefix: str = "",
        tokenizer: Any = None,
        exempt: Sequence[str] = (),
    ) -> None:
        self.rewards = [with_prefix(reward, response_prefix) for reward in rewards]
        self.in_thought = response_prefix.rfind(THINK) > response_prefix.rfind(END_THINK)
        self.exempt = exempt
        self.think = think and not response_prefix  # which has the thought, or its beginning
        self.tokenizer = tokenizer
        self.tables = {reward_name(reward): {kind: ScoreTable(kind) for kind in ANSWER_KINDS} for reward in rewards}
        self.timings: list[Timing] = []

    def run(self, prompts: Dataset, references: Sequence[str]) -> None:
        """Test every kind of answer on every row, adversarial ones only on the first rows."""
        others = mismatched_references(references)
        for start in range(0, len(references), ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, len(references)))
            rows = [{**prompts[number], "row_index": number} for number in numbers]
            self.score(REFERENCE, [(row, references[row["row_index"]]) for row in rows])
            self.score(WRITTEN, [(row, as_written(references[row["row_index"]])) for row in rows])
            self.score(MISMATCHED, [(row, others[row["row_index"]]) for row in rows if others[row["row_index"]]])
            self.score(NOTHING, [(row, None) for row in rows])
            self.score(EMPTY_BOX, [(row, "") for row in rows])
            for kind, answer in ADVERSARIAL_ANSWERS.items():
                self.score(kind, [(row, answer) for row in rows if row["row_index"] < ADVERSARIAL_ROWS])

    def score(self, kind: str, pairs: Sequence[tuple[dict[str, Any], str | None]]) -> None:
        """Score rows and answers together, as in training, and then one by one for timing."""
        for reward in self.rewards if pairs else []:
            name = reward_name(reward)
            for (row, _), score in zip(pairs, self.call(reward, pairs), strict=True):
                self.tables[name][kind].scores[row["row_index"]] = score
            for pair in [] if is_async(reward) else pairs:
                started = time.perf_counter()
                self.call(reward, [pair])
                seconds = time.perf_counter() - started
                self.timings.append(Timing(seconds, name, kind, pair[0]["row_index"], pair[1] or ""))

    def call(self, reward: RewardFunction, pairs: Sequence[tuple[dict[str, Any], str | None]]) -> list[float | None]:
        """The rewards of responses, called with all arguments of the trainer."""
        rows = [row for row, _ in pairs]
        texts = [self.response(answer) for _, answer in pairs]
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
        columns |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
            "completion_ids": [self.token_ids(text) for text in texts],
        }
        with watchdog(HANG_SECONDS):
            result = reward(**columns, trainer_state=TrainerState(), log_extra=ignore, log_metric=ignore)
            return asyncio.run(result) if is_async(reward) else result

    def response(self, answer: str | None) -> str:
        """A completion with `answer` in a box, after a thought if the recipe requires one; empty without an answer.

        It continues the prompt as the chat template ends it.
        """
        if answer is None:
            return ""
        box = rf"\boxed{{{answer}}}"
        if self.in_thought:
            return f"I look at the image.\n{END_THINK}\n\n{box}"
        return f"{THINK}I look at the image.{END_THINK}\n\n{box}" if self.think else f"The answer is {box}."

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, verbose=False)["input_ids"] if self.tokenizer else []

    def judges(self, name: str) -> bool:
        """Whether a reward grades answers; one for the response format is only checked on reference answers."""
        if name in self.exempt:
            return False
        right, wrong = self.tables[name][REFERENCE].mean, self.tables[name][MISMATCHED].mean
        if wrong is None:  # all rows have the same reference answer
            wrong = self.tables[name][EMPTY_BOX].mean
        return right is not None and wrong is not None and right - wrong >= TELLS_APART

    def faults(self, references: Sequence[str]) -> list[str]:
        """The faults, one sentence each."""
        held = [name for name in self.tables if name not in self.exempt]
        judges = [name for name in held if self.judges(name)]
        faults = [fault for name in held for fault in reference_faults(name, self.tables[name][REFERENCE], references)]
        for name in [name for name in judges if name in BUILT_IN]:
            faults += wrapped_faults(name, references)
            faults += written_faults(name, self.tables[name][WRITTEN], references)
        faults += [fault for name in judges for fault in wrong_answer_faults(name, self.tables[name])]
        if not judges:
            faults.append(
                "no reward scores reference answers above those of other rows: correct answers are not rewarded"
            )
        return faults


def wrapped_faults(name: str, references: Sequence[str]) -> list[str]:
    """Reference answers that score 1 against themselves, but that no model output can equal."""
    reasons = {row: reason for row, text in enumerate(references) if (reason := why_never_equal(text))}
    faults = [
        f"{name}: row {row}: no response will equal the reference answer {references[row][:60]!r}: {reason}. "
        "Keep only the answer"
        for row, reason in reasons.items()
    ]
    return faults[:NUM_SHOWN] + too_many(name, len(faults), "more reference answers cannot be equalled")


def written_faults(name: str, table: ScoreTable, references: Sequence[str]) -> list[str]:
    """Reference answers that score 1 unchanged, but not in the form that a model writes."""
    faults = [
        f"{name}: row {row}: the reference answer {references[row][:60]!r}, written as "
        f"{as_written(references[row])[:80]!r}, scores {table.applied[row] + 0.0:g}, not 1"
        for row in table.failing_rows
    ]
    return faults[:NUM_SHOWN] + too_many(name, len(faults), "more reference answers do not score 1 so")


def too_many(name: str, number: int, what: str) -> list[str]:
    return [f"{name}: {number - NUM_SHOWN} {what}"] if number > NUM_SHOWN else []


def as_written(reference: str) -> str:
    r"""A correct answer in the form that a model writes: a letter as `\text{(A)}`, words in `\text{}`, mathematics in
    `$`."""
    letter = choice_letter(reference)
    if letter is not None:
        return rf"\text{{({letter})}}"
    is_plain = not any(character in reference for character in "\\{}$^_#%&~")
    return rf"\text{{{reference}}}" if is_plain and is_words(reference) else f"${reference.strip('$')}$"


def mismatched_references(references: Sequence[str]) -> list[str | None]:
    """For each row the next reference answer that reads differently; None if all are the same."""

    def following(row: int) -> Iterator[str]:
        return (references[(row + step) % len(references)] for step in range(1, len(references)))

    return [
        next((other for other in following(row) if other.lower() != own.lower()), None)
        for row, own in enumerate(references)
    ]


def reference_faults(name: str, table: ScoreTable, references: Sequence[str]) -> list[str]:
    if not table.applied:
        return [f"{name}: applies to no row, it returned None for every reference answer"]
    rows = table.failing_rows
    faults = [
        f"{name}: row {row}: the reference answer {references[row][:60]!r} scores {table.applied[row] + 0.0:g}, not 1"
        for row in rows
    ]
    return faults[:NUM_SHOWN] + too_many(name, len(rows), "more reference answers do not score 1")


def wrong_answer_faults(name: str, tables: dict[str, ScoreTable]) -> list[str]:
    mean = tables[MISMATCHED].mean
    faults = []
    if mean and mean > NEAR_ZERO:
        faults.append(
            f"{name}: reference answers of other rows score {mean:.2f} on average, expected at most {NEAR_ZERO}; "
            f"if it gives partial credit, --exempt {name} shows it without a check"
        )
    wrong = [table for kind, table in tables.items() if kind not in (*RIGHT, MISMATCHED) and table.failing_rows]
    return faults + [
        f"{name}: {table.kind} scores more than 0 in {format_rows(table.failing_rows)}" for table in wrong
    ]


def format_rows(rows: Sequence[int]) -> str:
    """`rows 3, 5 and 8 more`, or `none`."""
    if not rows:
        return "none"
    more = f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:NUM_SHOWN]))}{more}"


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Print where Python is and end the process after `seconds`, even within one long operation of C code."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=STANDARD_ERROR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def ignore(*args: Any, **kwargs: Any) -> None:
    """Replacement for the trainer's loggers."""
