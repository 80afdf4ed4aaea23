"""`vgpo reward test`: whether rewards tell right answers from wrong ones, before a model learns from them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from transformers import ProcessorMixin

from vgpo.answers import strip_outer_box
from vgpo.data import DataError, check_dataset, to_prompts
from vgpo.policy.prompts import response_prefix
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import load_processor, quiet_libraries, read_dataset
from vgpo.recipe.recipe import ON_CPU, Recipe, load_recipe
from vgpo.rewards import REWARDS, RewardError, load_reward, reward_name
from vgpo.rewards.checked import check_reward_columns
from vgpo.rewards.trial import NUM_SLOWEST, REFERENCE, RIGHT, RewardTest, format_rows
from vgpo.terminal import right
from vgpo.text import visible

ERRORS = (RecipeError, DataError, RewardError)


def test(config: str, overrides: Sequence[str], *, num_rows: int, exempt: Sequence[str]) -> bool:
    """Test the rewards of a recipe on the first rows of its training set; print table, slowest answers and faults.

    Loads no model, and a processor only for user-defined rewards and for thoughts: the test's responses continue
    from the prompt as its chat template ends it.

    Args:
        config: What `load_recipe` takes.
        overrides: Command-line words that override fields of the recipe.
        num_rows: Rows to test, at least 1.
        exempt: Names of rewards that are shown and never fail.

    Returns:
        Whether every reference answer scores 1 and wrong answers close to 0.

    Raises:
        RecipeError: The recipe, or a name in `exempt` that is not one of its rewards.
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
        reading = run.reading("train_data")
        rows = read_dataset(run.train_data, toy_folder=Path(folder), reading=reading, limit=num_rows)
        rows = check_dataset(rows, template=run.template, faulty_rows=reading.faulty_rows)
        prompts = to_prompts(rows, run.template)
        check_reward_columns(rewards, prompts)
        references = [strip_outer_box(str(answer)) for answer in rows["answer"]]
        processor = processor_for(recipe)
        trial = RewardTest(
            rewards,
            think=recipe.wants_thought,
            response_prefix=prefix_of(processor, recipe),
            tokenizer=getattr(processor, "tokenizer", None),
            exempt=exempt,
        )
        trial.run(prompts, references)
    faults = trial.faults(references)
    show(trial, faults, Console())
    return not faults


def processor_for(recipe: Recipe) -> ProcessorMixin | None:
    """The processor of the recipe's model if a reward may ask for token ids or the form of a response, else None."""
    if all(source in REWARDS for source in recipe.run.rewards) and not recipe.wants_thought:
        return None
    trust = recipe.config.trust_remote_code
    return load_processor(recipe.model, trust_remote_code=trust, min_pixels=None, max_pixels=None)


def prefix_of(processor: ProcessorMixin | None, recipe: Recipe) -> str:
    """How the chat template begins each response; "" where no reward looks at its form."""
    return response_prefix(processor, recipe.config.chat_template_kwargs or {}) if processor else ""


def show(trial: RewardTest, faults: Sequence[str], console: Console) -> None:
    """Print the table, the slowest answers, and the faults."""
    table = Table("reward", "answer", right("mean"), right("rows"), "rows that fail", box=None, pad_edge=False)
    for name, tables in trial.tables.items():
        for kind, scores in tables.items():
            is_tested = trial.judges(name) or (kind in RIGHT and name not in trial.exempt)
            failing = format_rows(scores.failing_rows) if is_tested else "not tested"
            mean = "-" if scores.mean is None else f"{scores.mean:.3f}"
            table.add_row(Text(name if kind == REFERENCE else ""), kind, mean, str(len(scores.scores)), failing)
    slowest = Table("slowest", "answer", right("row"), right("seconds"), "", box=None, pad_edge=False)
    for timing in sorted(trial.timings, reverse=True)[:NUM_SLOWEST]:
        answer = Text(visible(timing.answer[:40]))
        slowest.add_row(Text(timing.reward), timing.kind, str(timing.row), f"{timing.seconds:.4f}", answer)
    console.print(Group(table, "", slowest, ""))
    for fault in faults:
        console.print(Text("fault: ", style="bold red") + Text(visible(fault)), soft_wrap=True)
    if not faults:
        console.print("all reference answers score 1, wrong answers close to 0", style="green", highlight=False)
