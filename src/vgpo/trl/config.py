"""Configuration of the TRL host."""

from dataclasses import dataclass, field
from typing import ClassVar

from trl import GRPOConfig

from vgpo.settings_checks import reject_unused
from vgpo.training.batch_plan import BatchPlan
from vgpo.training.method import MethodArguments, check_group_size

# Rewards normalised over the batch would be normalised over groups that dynamic sampling then drops.
BATCH_WIDE = "dynamic_sampling needs rewards that are normalised within a group"


@dataclass
class VGPOConfig(MethodArguments, GRPOConfig):
    """GRPO's configuration plus the method's settings, dynamic sampling, guards and alarms (`MethodArguments`)."""

    # TRL's default of 10 leaves a short run without a curve.
    logging_steps: float = field(default=1, metadata={"help": "Log every N optimizer steps."})

    # Lists and dicts that the command line may give as JSON.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "shaping_options"]

    def __post_init__(self) -> None:
        check_group_size(self.num_generations)
        try:
            super().__post_init__()
        except ValueError as error:
            self._explain_batch_sizes(error)
            raise
        self.check_method()
        self._check_checkpoints()
        if self.beta == 0:
            reject_unused(self, ["alarm_kl"], without="a reference model", fix="beta above 0")
        if self.dynamic_sampling:
            self._check_dynamic_sampling()

    @property
    def batch_plan(self) -> BatchPlan:
        """Sizes of a generation and its updates, over all processes."""
        return BatchPlan(
            micro_batch=self.per_device_train_batch_size,
            group_size=self.num_generations,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
            accumulation=self.gradient_accumulation_steps,
            num_processes=self.world_size,
        )

    def _explain_batch_sizes(self, error: ValueError) -> None:
        """Say which sizes would fit, where the parent only says that these do not."""
        size, group = self.generation_batch_size, self.num_generations
        if size is not None and size % group:
            raise ValueError(
                f"A generation batch of {size} rollouts (per_device_train_batch_size="
                f"{self.per_device_train_batch_size} x processes x steps per generation) cannot hold complete groups "
                f"of num_generations={group}. Set per_device_train_batch_size to a multiple of {group} ({group}, "
                f"{2 * group}, ...), or make the product a multiple of {group}."
            ) from error

    def _check_checkpoints(self) -> None:
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(
                f"save_total_limit={self.save_total_limit}, expected 1 or more, or None to keep every checkpoint."
            )
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True is not supported: the parent looks for the best checkpoint where it "
                "wrote it, but it is moved once it is complete. Keep all checkpoints (save_total_limit=None) "
                "and compare them with `vgpo eval`."
            )

    def _check_dynamic_sampling(self) -> None:
        rollouts = self.batch_plan.rollouts_per_process
        if rollouts % self.num_generations:
            raise ValueError(
                f"dynamic_sampling fills each process with complete groups, but a process generates "
                f"{rollouts} rollouts (per_device_train_batch_size="
                f"{self.per_device_train_batch_size} x steps_per_generation={self.steps_per_generation}), which is "
                f"not a multiple of num_generations={self.num_generations}. Make per_device_train_batch_size a "
                f"multiple of {self.num_generations}."
            )
        if self.scale_rewards == "batch":
            raise ValueError(f"{BATCH_WIDE}: set scale_rewards to 'group' or 'none', not 'batch'.")
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"{BATCH_WIDE}: set multi_objective_aggregation to 'sum_then_normalize', "
                f"not {self.multi_objective_aggregation!r}."
            )
