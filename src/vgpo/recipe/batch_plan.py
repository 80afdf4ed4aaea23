"""The batch arithmetic of a run: how prompts become rollouts, and rollouts become optimiser steps."""

import math
from dataclasses import dataclass

from rich.table import Table

from vgpo.recipe.recipe import RecipeError, RunArguments
from vgpo.trl import VGPOConfig


@dataclass(frozen=True)
class BatchPlan:
    """Counts over all processes.

    A generation rolls out `prompts` prompts `group_size` times each; its rollouts are trained on in
    `updates` optimiser steps, micro-batch by micro-batch.
    """

    num_processes: int
    prompts: int
    group_size: int
    rollouts: int
    rollouts_per_update: int
    rollouts_per_micro_batch: int
    updates: float
    generations: int
    steps: int

    @classmethod
    def of(cls, config: VGPOConfig, num_prompts: int, num_processes: int) -> "BatchPlan":
        """The arithmetic of a training set of `num_prompts` prompts on `num_processes` processes.

        Raises:
            RecipeError: The set is too small for one generation, or a generation is no whole number of groups.
        """
        micro_batch, group_size = config.per_device_train_batch_size, config.num_generations
        rollouts = micro_batch * config.steps_per_generation * num_processes
        if rollouts % group_size:
            raise RecipeError(
                f"a generation of {rollouts} rollouts ({micro_batch} per device x {config.steps_per_generation} "
                f"steps_per_generation x {num_processes} processes) is no whole number of groups of "
                f"{group_size}; make per_device_train_batch_size a multiple of num_generations"
            )
        prompts = rollouts // group_size
        if prompts > num_prompts:
            raise RecipeError(
                f"a generation takes {prompts} prompts and the training set has {num_prompts}; "
                "lower steps_per_generation or per_device_train_batch_size, or add data"
            )
        updates = config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps
        epoch_steps = math.ceil(num_prompts // prompts * updates)
        steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch_steps)
        return cls(
            num_processes=num_processes,
            prompts=prompts,
            group_size=group_size,
            rollouts=rollouts,
            rollouts_per_update=micro_batch * config.gradient_accumulation_steps * num_processes,
            rollouts_per_micro_batch=micro_batch,
            updates=updates,
            generations=math.ceil(steps / updates),
            steps=steps,
        )

    @property
    def groups_stay_whole(self) -> bool:
        """Whether every micro-batch is a set of whole groups, so that no extra scoring pass is needed."""
        return self.rollouts_per_micro_batch % self.group_size == 0

    def table(self) -> Table:
        """A short table for the start of a run."""
        table = Table("batch arithmetic", "", box=None, title_justify="left", pad_edge=False)
        rows = {
            "processes": f"{self.num_processes}",
            "generation": f"{self.prompts} prompts x {self.group_size} rollouts = {self.rollouts}",
            "updates per generation": f"{self.updates:g}, of {self.rollouts_per_update} rollouts each",
            "micro-batch": f"{self.rollouts_per_micro_batch} rollouts, "
            + ("whole groups" if self.groups_stay_whole else "groups are cut: one more scoring pass"),
            "optimiser steps": f"{self.steps}, in {self.generations} generations",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def check_launch(run: RunArguments, num_processes: int) -> None:
    """Whether a run fits the number of processes it was started with.

    Raises:
        RecipeError: Batch sizes written for another number, or an evaluation inside a distributed run.
    """
    if run.num_processes is not None and run.num_processes != num_processes:
        raise RecipeError(
            f"the batch sizes are written for num_processes={run.num_processes}, but {num_processes} started. Start "
            f"with the `accelerate launch` line of the recipe's comment (num_processes: {run.num_processes} in its "
            "--config_file), or change gradient_accumulation_steps and steps_per_generation, and num_processes with "
            "them"
        )
    if run.eval_data and num_processes > 1:
        raise RecipeError(
            "eval_data is for runs of one process; remove it and run `vgpo eval RUN/checkpoints/final` afterwards"
        )
