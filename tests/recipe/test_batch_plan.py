"""Batch arithmetic, by hand."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vgpo.recipe.batch_plan import BatchPlan, check_launch
from vgpo.recipe.recipe import RecipeError, RunArguments, load_recipe

SIZES = """
num_generations: 4
per_device_train_batch_size: 8
gradient_accumulation_steps: 3
steps_per_generation: 6
num_iterations: 2
num_train_epochs: 3
"""


def test_literals(write_recipe: Callable[[str], Path]) -> None:
    arithmetic = BatchPlan.of(load_recipe(write_recipe(SIZES)).config, num_prompts=100, num_processes=2)
    assert arithmetic == BatchPlan(
        num_processes=2,
        rollouts=96,  # 8 x 6 x 2
        prompts=24,  # 96 / 4
        group_size=4,
        rollouts_per_update=48,  # 8 x 3 x 2
        rollouts_per_micro_batch=8,
        updates=4,  # 6 / 3 updates, twice
        steps=48,  # 100 // 24 = 4 generations x 4 updates x 3 epochs
        generations=12,
    )
    assert arithmetic.groups_stay_whole


def test_max_steps_overrules_epochs(write_recipe: Callable[[str], Path]) -> None:
    config = load_recipe(write_recipe(SIZES), ["--max_steps", "10"]).config
    arithmetic = BatchPlan.of(config, num_prompts=100, num_processes=1)
    assert (arithmetic.steps, arithmetic.generations) == (10, 3)  # 10 / 4, rounded up


def test_the_table_says_when_groups_are_cut(write_recipe: Callable[[str], Path]) -> None:
    words = ["--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "2", "--steps_per_generation", "2"]
    arithmetic = BatchPlan.of(load_recipe(write_recipe(SIZES), words).config, 100, 1)
    console = Console(width=100, file=io.StringIO())
    console.print(arithmetic.table())
    text = console.file.getvalue()
    assert "3 prompts x 4 rollouts = 12" in text
    assert "groups are cut: one more scoring pass" in text


def test_too_little_data_and_cut_groups_are_errors(write_recipe: Callable[[str], Path]) -> None:
    config = load_recipe(write_recipe(SIZES)).config
    with pytest.raises(RecipeError, match="a generation takes 24 prompts and the training set has 23"):
        BatchPlan.of(config, 23, 2)
    config.steps_per_generation = 1
    config.per_device_train_batch_size = 6
    with pytest.raises(RecipeError, match=r"6 rollouts .* no whole number of groups of 4"):
        BatchPlan.of(config, 23, 1)


def test_the_number_of_processes_is_checked() -> None:
    check_launch(RunArguments(train_data="x", num_processes=8), 8)
    check_launch(RunArguments(train_data="x", eval_data="y"), 1)
    with pytest.raises(RecipeError, match=r"num_processes=8, but 1 started.*accelerate launch.*num_processes: 8"):
        check_launch(RunArguments(train_data="x", num_processes=8), 1)
    with pytest.raises(RecipeError, match=r"eval_data is for runs of one process.*vgpo eval"):
        check_launch(RunArguments(train_data="x", eval_data="y"), 2)
