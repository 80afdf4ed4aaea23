"""`vgpo reward test`: whether rewards tell right answers from wrong ones, before a model learns from them."""

import asyncio
import faulthandler
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from transformers import TrainerState

from vgpo.commands.loading import load_processor, quiet_libraries, read_dataset
from vgpo.commands.recipe import ON_CPU, Recipe, RecipeError, load_recipe
from vgpo.commands.terminal import right
from vgpo.data import DataError, check_dataset, template_text, to_prompts
from vgpo.rewards import (
    GIVEN,
    REWARDS,
    RewardError,
    RewardFunction,
    check_arguments,
    is_async,
    load_reward,
    reward_name,
    strip_outer_box,
)
from vgpo.text import visible

ERRORS = (RecipeError, DataError, RewardError)


GOLD, OTHER, NOTHING, EMPTY_BOX = "gold", "gold of another row", "empty response", "empty box"
RUNAWAYS = {"10,000 characters": "7" * 10_000, "power tower": "9^{9^{9^{9}}}", "slow power": "9**(9*9*9*9*9*9*9*9*9)"}
KINDS = (GOLD, OTHER, NOTHING, EMPTY_BOX, *RUNAWAYS)

TOLERANCE = 1e-6
NEAR_ZERO = 0.1  # on average: another row's gold is right now and then, 1/2 where 0.5 is asked for
TELLS_APART = 0.1  # a reward that gives golds so much more than golds of other rows judges answers
ROWS_AT_ONCE = 32  # whose pictures are held together
RUNAWAY_ROWS = 2  # each may take the grader's whole time limit
HANG_SECONDS = 120.0
STANDARD_ERROR = 2  # of the process, whatever sys.stderr is
NUM_SLOWEST = 5
NUM_SHOWN = 10


@dataclass
class Tally:
    """What one reward gave to one kind of answer, by row of the data set; None where it did not apply."""

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
        """Rows whose gold does not score 1, or whose wrong answer scores more than 0."""
        if self.kind == GOLD:
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


class Trial:
    """Rewards on answers whose worth is known: golds, golds of other rows, nothing, and what costs time or memory.

    rewards: of `load_reward`. think: whether responses begin with a thought. tokenizer: gives `completion_ids`,
    which are empty without one. exempt: names of rewards that are held to nothing.
    """

    def __init__(
        self, rewards: Sequence[RewardFunction], *, think: bool, tokenizer: Any = None, exempt: Sequence[str] = ()
    ) -> None:
        self.rewards = rewards
        self.exempt = exempt
        self.think = think
        self.tokenizer = tokenizer
        self.tallies = {reward_name(reward): {kind: Tally(kind) for kind in KINDS} for reward in rewards}
        self.timings: list[Timing] = []

    def run(self, prompts: Dataset, golds: Sequence[str]) -> None:
        """Give every kind of answer to every row, runaway ones to the first rows only."""
        others = golds_of_other_rows(golds)
        for start in range(0, len(golds), ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, len(golds)))
            rows = [{**prompts[number], "row_index": number} for number in numbers]
            self.score(GOLD, [(row, golds[row["row_index"]]) for row in rows])
            self.score(OTHER, [(row, others[row["row_index"]]) for row in rows if others[row["row_index"]]])
            self.score(NOTHING, [(row, None) for row in rows])
            self.score(EMPTY_BOX, [(row, "") for row in rows])
            for kind, answer in RUNAWAYS.items():
                self.score(kind, [(row, answer) for row in rows if row["row_index"] < RUNAWAY_ROWS])

    def score(self, kind: str, pairs: Sequence[tuple[dict[str, Any], str | None]]) -> None:
        """Score rows and answers together, as in training, and then one by one against the clock."""
        for reward in self.rewards if pairs else []:
            name = reward_name(reward)
            for (row, _), score in zip(pairs, self.call(reward, pairs), strict=True):
                self.tallies[name][kind].scores[row["row_index"]] = score
            for pair in [] if is_async(reward) else pairs:
                started = time.perf_counter()
                self.call(reward, [pair])
                seconds = time.perf_counter() - started
                self.timings.append(Timing(seconds, name, kind, pair[0]["row_index"], pair[1] or ""))

    def call(self, reward: RewardFunction, pairs: Sequence[tuple[dict[str, Any], str | None]]) -> list[float | None]:
        """The rewards of responses, called with all that the trainer gives."""
        rows = [row for row, _ in pairs]
        texts = [self.response(answer) for _, answer in pairs]
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
        columns |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
            "completion_ids": [self.token_ids(text) for text in texts],
        }
        with end_if_stuck(HANG_SECONDS):
            result = reward(**columns, trainer_state=TrainerState(), log_extra=ignore, log_metric=ignore)
            return asyncio.run(result) if is_async(reward) else result

    def response(self, answer: str | None) -> str:
        """A response that gives `answer` in a box, after a thought if the recipe wants one; empty without answer."""
        if answer is None:
            return ""
        box = rf"\boxed{{{answer}}}"
        return f"<think>I look at the picture.</think>\n\n{box}" if self.think else f"The answer is {box}."

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, verbose=False)["input_ids"] if self.tokenizer else []

    def judges(self, name: str) -> bool:
        """Whether a reward is one for answers; one for the form of a response is held to the golds only."""
        if name in self.exempt:
            return False
        gold, wrong = self.tallies[name][GOLD].mean, self.tallies[name][OTHER].mean
        if wrong is None:  # all rows have the same gold
            wrong = self.tallies[name][EMPTY_BOX].mean
        return gold is not None and wrong is not None and gold - wrong >= TELLS_APART

    def faults(self, golds: Sequence[str]) -> list[str]:
        """What is wrong, a sentence each."""
        held = [name for name in self.tallies if name not in self.exempt]
        judges = [name for name in held if self.judges(name)]
        faults = [fault for name in held for fault in gold_faults(name, self.tallies[name][GOLD], golds)]
        faults += [fault for name in judges for fault in wrong_answer_faults(name, self.tallies[name])]
        if not judges:
            faults.append("no reward gives golds more than golds of other rows: right answers earn nothing extra")
        return faults


def test(config: str, overrides: Sequence[str], *, num_rows: int, exempt: Sequence[str]) -> bool:
    """Test the rewards of a recipe on the first rows of its training set; print table, slowest answers and faults.

    Loads no model, and a tokenizer only for rewards that are not ours.

    Args:
        config: What `load_recipe` takes.
        overrides: Command-line words that override fields of the recipe.
        num_rows: Rows to test, at least 1.
        exempt: Names of rewards that are shown, and not held to anything.

    Returns:
        Whether every gold scores 1 and wrong answers next to nothing.

    Raises:
        RecipeError: The recipe, or a name in `exempt` that is no reward of it.
        DataError: A row that cannot be trained on.
        RewardError: A reward that fails; names the row.
    """
    quiet_libraries()
    recipe = load_recipe(config, [*overrides, *ON_CPU])
    run = recipe.run
    rewards = [load_reward(source) for source in run.rewards]
    names = [reward_name(reward) for reward in rewards]
    for name in exempt:
        if name not in names:
            raise RecipeError(f"--exempt {name}: the recipe's rewards are {names}")
    with tempfile.TemporaryDirectory(prefix="vgpo-") as folder:
        rows = read_dataset(run.train_data, toy_folder=Path(folder), format=run.train_format, limit=num_rows)
        check_dataset(rows, template=run.template)
        prompts = to_prompts(rows, run.template)
        check_reward_columns(rewards, prompts)
        golds = [strip_outer_box(str(answer)) for answer in rows["answer"]]
        trial = Trial(rewards, think=wants_thought(recipe), tokenizer=tokenizer_for(recipe), exempt=exempt)
        trial.run(prompts, golds)
    faults = trial.faults(golds)
    show(trial, faults, Console())
    return not faults


def check_reward_columns(rewards: Iterable[RewardFunction], prompts: Dataset) -> None:
    """Whether the data set has the columns that the rewards ask for.

    Raises:
        RewardError: A column is missing, or a reward does not take all; names both.
    """
    columns = [*GIVEN, *(key for key in prompts[0] if key != "prompt"), "row_index"]
    for reward in rewards:
        check_arguments(reward, columns)


def golds_of_other_rows(golds: Sequence[str]) -> list[str | None]:
    """For each row the next gold that reads differently; None if all are the same."""

    def following(row: int) -> Iterator[str]:
        return (golds[(row + step) % len(golds)] for step in range(1, len(golds)))

    return [
        next((other for other in following(row) if other.lower() != gold.lower()), None)
        for row, gold in enumerate(golds)
    ]


def wants_thought(recipe: Recipe) -> bool:
    """Whether responses of this recipe begin with a thought between tags."""
    return "format" in recipe.run.rewards or "<think>" in template_text(recipe.run.template)


def tokenizer_for(recipe: Recipe) -> Any:
    """The tokenizer of the recipe's model if a reward that is not ours may ask for token ids, else None."""
    if all(source in REWARDS for source in recipe.run.rewards):
        return None
    trust = recipe.config.trust_remote_code
    return load_processor(recipe.model, trust_remote_code=trust, min_pixels=None, max_pixels=None).tokenizer


def gold_faults(name: str, tally: Tally, golds: Sequence[str]) -> list[str]:
    if not tally.applied:
        return [f"{name}: applies to no row, for it returned None for every gold"]
    rows = tally.failing_rows
    faults = [
        f"{name}: row {row}: the gold {golds[row][:60]!r} scores {tally.applied[row] + 0.0:g}, not 1" for row in rows
    ]
    more = [f"{name}: {len(rows) - NUM_SHOWN} more golds do not score 1"] if len(rows) > NUM_SHOWN else []
    return faults[:NUM_SHOWN] + more


def wrong_answer_faults(name: str, tallies: dict[str, Tally]) -> list[str]:
    mean = tallies[OTHER].mean
    faults = [f"{name}: golds of other rows score {mean:.2f} on average"] if mean and mean > NEAR_ZERO else []
    wrong = [tally for kind, tally in tallies.items() if kind not in (GOLD, OTHER) and tally.failing_rows]
    return faults + [f"{name}: {tally.kind} scores more than 0 in {listed(tally.failing_rows)}" for tally in wrong]


def show(trial: Trial, faults: Sequence[str], console: Console) -> None:
    """Print the table, the slowest answers, and what is wrong."""
    table = Table("reward", "answer", right("mean"), right("rows"), "rows that fail", box=None, pad_edge=False)
    for name, tallies in trial.tallies.items():
        for kind, tally in tallies.items():
            held = trial.judges(name) or (kind == GOLD and name not in trial.exempt)
            failing = listed(tally.failing_rows) if held else "not held to this"
            mean = "-" if tally.mean is None else f"{tally.mean:.3f}"
            table.add_row(Text(name if kind == GOLD else ""), kind, mean, str(len(tally.scores)), failing)
    slowest = Table("slowest", "answer", right("row"), right("seconds"), "", box=None, pad_edge=False)
    for timing in sorted(trial.timings, reverse=True)[:NUM_SLOWEST]:
        answer = Text(visible(timing.answer[:40]))
        slowest.add_row(Text(timing.reward), timing.kind, str(timing.row), f"{timing.seconds:.4f}", answer)
    console.print(Group(table, "", slowest, ""))
    for fault in faults:
        console.print(Text("fault: ", style="bold red") + Text(visible(fault)), soft_wrap=True)
    if not faults:
        console.print("all golds score 1, wrong answers next to nothing", style="green", highlight=False)


def listed(rows: Sequence[int]) -> str:
    """`rows 3, 5 and 8 more`, or `none`."""
    if not rows:
        return "none"
    more = f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:NUM_SHOWN]))}{more}"


@contextmanager
def end_if_stuck(seconds: float) -> Iterator[None]:
    """Print where Python is and end the process after `seconds`, even within one long operation of C code."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=STANDARD_ERROR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def ignore(*args: Any, **kwargs: Any) -> None:
    """In place of the trainer's loggers."""
