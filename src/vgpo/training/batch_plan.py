"""The batch arithmetic of a host: how prompts become rollouts, and rollouts become optimizer steps."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Sizes of one generation and of its updates.

    A generation rolls out `prompts` prompts `group_size` times each. Its rollouts are trained on in `updates`
    optimizer steps, micro-batch by micro-batch.
    """

    micro_batch: int
    """Rollouts of one forward and backward pass of a process."""
    group_size: int
    """Rollouts of a prompt."""
    steps_per_generation: int
    """Micro-batches into which a process splits a generation."""
    num_iterations: int = 1
    """How often a generation is trained on."""
    accumulation: int = 1
    """Micro-batches of an optimizer step."""
    num_processes: int = 1

    @property
    def rollouts_per_process(self) -> int:
        """Rollouts that one process generates at a time."""
        return self.micro_batch * self.steps_per_generation

    @property
    def groups_per_process(self) -> int:
        """Complete groups that one process generates at a time."""
        return self.rollouts_per_process // self.group_size

    @property
    def rollouts(self) -> int:
        """Rollouts of a generation, over all processes."""
        return self.rollouts_per_process * self.num_processes

    @property
    def prompts(self) -> int:
        """Prompts of a generation, over all processes."""
        return self.rollouts // self.group_size

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a process trains on before the next generation."""
        return self.steps_per_generation * self.num_iterations

    @property
    def updates(self) -> float:
        """Optimizer steps before the next generation."""
        return self.micro_batches / self.accumulation

    @property
    def rollouts_per_update(self) -> int:
        """Rollouts of an optimizer step, over all processes."""
        return self.micro_batch * self.accumulation * self.num_processes

    @property
    def has_whole_groups(self) -> bool:
        """Whether the rollouts of a process are complete groups."""
        return self.rollouts_per_process % self.group_size == 0

    def following(self, step: int, left: int) -> list[int]:
        """Which of the `steps_per_generation` micro-batches come after one in its optimizer step.

        Args:
            step: number of the micro-batch, counted from the first generation on.
            left: how many micro-batches the optimizer step has left; those of the next generation are not among them.
        """
        place = step % self.micro_batches
        return [i % self.steps_per_generation for i in range(place + 1, min(place + 1 + left, self.micro_batches))]

    @property
    def groups_fit_micro_batch(self) -> bool:
        """Whether every micro-batch is a set of complete groups, so that an update can shape it."""
        return self.micro_batch % self.group_size == 0
