"""The plan of a run, by hand."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.run_arguments import RunArguments
from vgpo.recipe.run_plan import RunPlan, check_launch

SIZES = """
num_generations: 4
per_device_train_batch_size: 8
gradient_accumulation_steps: 3
steps_per_generation: 6
num_iterations: 2
num_train_epochs: 3
"""


def test_literals(write_recipe: Callable[[str], Path]) -> None:
    plan = RunPlan.of(load_recipe(write_recipe(SIZES)).config, num_prompts=100, num_processes=2)
    batch = plan.batch
    assert (batch.num_processes, batch.micro_batch, batch.group_size) == (2, 8, 4)
    assert (batch.rollouts, batch.prompts) == (96, 24)  # 8 x 6 x 2, 96 / 4
    assert (batch.rollouts_per_process, batch.groups_per_process) == (48, 12)  # 8 x 6, 48 / 4
    assert batch.rollouts_per_update == 48  # 8 x 3 x 2
    assert (batch.micro_batches, batch.updates) == (12, 4)  # 6 twice, 12 / 3
    # 100 // 24 = 4 generations an epoch, x 3 epochs, x 4 updates
    assert (plan.generations, plan.steps) == (12, 48)
    assert batch.groups_fit_micro_batch


def test_max_steps_overrules_epochs(write_recipe: Callable[[str], Path]) -> None:
    config = load_recipe(write_recipe(SIZES), ["--max_steps", "10"]).config
    plan = RunPlan.of(config, num_prompts=100, num_processes=1)
    assert (plan.steps, plan.generations) == (10, 3)  # 10 / 4, rounded up


def test_the_table_says_when_groups_are_cut(write_recipe: Callable[[str], Path]) -> None:
    words = ["--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "2", "--steps_per_generation", "2"]
    plan = RunPlan.of(load_recipe(write_recipe(SIZES), words).config, 100, 1)
    console = Console(width=100, file=io.StringIO())
    console.print(plan.table())
    text = console.file.getvalue()
    assert "3 prompts x 4 rollouts = 12" in text
    assert "groups are split" in text


def test_too_little_data_and_cut_groups_are_errors(write_recipe: Callable[[str], Path]) -> None:
    config = load_recipe(write_recipe(SIZES)).config
    with pytest.raises(RecipeError, match="a generation takes 24 prompts and the training set has 23"):
        RunPlan.of(config, 23, 2)
    config.steps_per_generation = 1
    config.per_device_train_batch_size = 6
    with pytest.raises(RecipeError, match=r"6 rollouts .* not a whole number of groups of 4"):
        RunPlan.of(config, 23, 1)


def test_the_number_of_processes_is_checked() -> None:
    check_launch(RunArguments(train_data="x", num_processes=8), 8)
    check_launch(RunArguments(train_data="x", eval_data="y"), 1)
    with pytest.raises(RecipeError, match=r"num_processes=8, but 1 started.*accelerate launch.*num_processes: 8"):
        check_launch(RunArguments(train_data="x", num_processes=8), 1)
    with pytest.raises(RecipeError, match=r"eval_data is for runs of one process.*vgpo eval"):
        check_launch(RunArguments(train_data="x", eval_data="y"), 2)
