"""The plan of a run: batches, generations and optimizer steps."""

import math
from dataclasses import dataclass, replace

from rich.table import Table

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.run_arguments import RunArguments
from vgpo.training.batch_plan import BatchPlan
from vgpo.trl import VGPOConfig


@dataclass(frozen=True)
class RunPlan:
    """The batches of a run over all processes, its generations and its optimizer steps."""

    batch: BatchPlan
    generations: int
    steps: int

    @classmethod
    def of(cls, config: VGPOConfig, num_prompts: int, num_processes: int) -> "RunPlan":
        """The plan for a training set of `num_prompts` prompts on `num_processes` processes.

        Raises:
            RecipeError: The dataset is too small for one generation, or a generation is not a multiple of the group
            size.
        """
        batch = replace(config.batch_plan, num_processes=num_processes)
        if batch.rollouts % batch.group_size:
            raise RecipeError(
                f"a generation of {batch.rollouts} rollouts ({batch.micro_batch} per device x "
                f"{batch.steps_per_generation} steps_per_generation x {num_processes} processes) is not a whole "
                "number "
                f"of groups of {batch.group_size}; make per_device_train_batch_size a multiple of num_generations"
            )
        if batch.prompts > num_prompts:
            raise RecipeError(
                f"a generation takes {batch.prompts} prompts and the training set has {num_prompts}; "
                "lower steps_per_generation or per_device_train_batch_size, or add data"
            )
        epoch_steps = math.ceil(num_prompts // batch.prompts * batch.updates)
        steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch_steps)
        return cls(batch, generations=math.ceil(steps / batch.updates), steps=steps)

    def table(self) -> Table:
        """A short table for the start of a run."""
        batch = self.batch
        table = Table("batches", "", box=None, title_justify="left", pad_edge=False)
        rows = {
            "processes": f"{batch.num_processes}",
            "generation": f"{batch.prompts} prompts x {batch.group_size} rollouts = {batch.rollouts}",
            "updates per generation": f"{batch.updates:g}, of {batch.rollouts_per_update} rollouts each",
            "micro-batch": f"{batch.micro_batch} rollouts, "
            + ("complete groups" if batch.groups_fit_micro_batch else "groups are split"),
            "optimizer steps": f"{self.steps}, in {self.generations} generations",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def check_launch(run: RunArguments, num_processes: int) -> None:
    """Check that a run fits the number of processes with which it was started.

    Raises:
        RecipeError: The batch sizes are for another number, or there is an evaluation in a distributed run.
    """
    if run.num_processes is not None and run.num_processes != num_processes:
        raise RecipeError(
            f"the batch sizes are written for num_processes={run.num_processes}, but {num_processes} started. Start "
            f"with the `accelerate launch` line of the recipe's comment (num_processes: {run.num_processes} in its "
            "--config_file), or change gradient_accumulation_steps and steps_per_generation, and num_processes with "
            "them"
        )
    evaluation = "eval_data" if run.eval_data else "eval_suite" if run.eval_suite else None
    if evaluation and num_processes > 1:
        raise RecipeError(
            f"{evaluation} is for runs of one process; remove it and run `vgpo eval RUN/checkpoints/final` afterwards"
        )
