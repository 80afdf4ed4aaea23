"""Checkpoints that hold a run, and a resumed run that equals an uninterrupted one.

The parent's checkpoint has weights, optimizer, schedule, random numbers and step. What it lacks, each process adds:
the rollouts that are still to be trained on, counters, and figures that are not logged yet. All of it is staged,
sealed and put in its place by `vgpo.checkpoints`, and loading it runs no code.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, gather_object
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from vgpo.checkpoints import (
    CheckpointError,
    CheckpointStore,
    Found,
    load_state,
    save_state,
    strict_difference,
    weight_hash,
)
from vgpo.training.batches import Batch, to_device
from vgpo.training.resuming import (
    FOLDER_STATE,
    IDENTITY,
    buffer_state,
    changed_values,
    choose_checkpoint,
    require_no_checkpoints,
    restored_buffer,
    run_on_main_process,
)

logger = logging.get_logger(__name__)

# Of a parameter group; its other entries may be the state of an optimizer.
OPTIMISER_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps")
# They decide how rows are drawn and split into updates. A checkpoint holds what is left of a generation.
BATCHING_FIELDS = (
    "num_generations", "per_device_train_batch_size", "steps_per_generation", "num_iterations", "dynamic_sampling",
)  # fmt: skip
# What the parents keep from step to step, and do not save.
COUNTERS = ("_step", "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_entropy_window_stats")


class ResumableTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with complete checkpoints (`vgpo.checkpoints.CheckpointStore`) and exact resumes.

    A subclass adds what it carries from step to step: it extends `step_state` and `load_step_state`.

    Args:
        run_identity: what must not change when the run is resumed, name by name; stored with each checkpoint.
        folder_state: called on the main process when a checkpoint is saved; stored with it, as JSON.
    """

    _staging: Path | None = None
    _sampler: Sampler | None = None
    _saved_state: dict[str, Any] | None = None  # of a checkpoint, until it is restored
    _buffered_inputs: list[Batch] | None

    def __init__(
        self,
        *args: Any,
        run_identity: Mapping[str, Any] | None = None,
        folder_state: Callable[[], Mapping[str, Any]] = dict,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._plan = self.args.batch_plan
        self.run_identity = dict(run_identity or {})
        self.folder_state = folder_state
        self.add_callback(LogBeforeSave)

    @cached_property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints of this run.

        At least two of them stay: no loss has been computed yet with the weights of the newest one.
        """
        limit = self.args.save_total_limit
        return CheckpointStore(Path(self.args.output_dir), keep=None if limit is None else max(limit, 2))

    def train(self, resume_from_checkpoint: str | bool | Found | None = None, **kwargs: Any) -> Any:
        """As the parent.

        Args:
            resume_from_checkpoint: True for the newest intact checkpoint (those skipped are named), the
                path of one, or what `newest_checkpoint` has found.
            kwargs: the parent's.

        Raises:
            CheckpointError: there is none, the named one is not intact, or it cannot be resumed with these settings;
                or a training that starts from step 0 would replace checkpoints of an earlier one.
        """
        path = str(self._choose_checkpoint(resume_from_checkpoint)) if resume_from_checkpoint else None
        if path is None and self.state.global_step == 0:
            run_on_main_process(lambda: require_no_checkpoints(self.checkpoints))
        return super().train(resume_from_checkpoint=path, **kwargs)

    def _choose_checkpoint(self, requested: str | bool | Found) -> Path:
        if self.args.sync_ref_model:
            raise CheckpointError(
                "sync_ref_model changes the reference model, which no checkpoint holds: such a run cannot be resumed. "
                "Start a new one, or set sync_ref_model=False."
            )
        path = choose_checkpoint(requested, self.checkpoints)
        if not any(path.glob("rng_state*.pth")):
            raise CheckpointError(
                f"{path} was saved with save_only_model=True: it holds the weights, and neither optimizer nor random "
                "state to resume with. Begin a new run from it: name it as the model."
            )
        return path

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        with self._raise_on_all_ranks(step):
            if self.args.should_save:
                self.checkpoints.begin(step)
        with self._raise_on_all_ranks(step):
            self._stage(model, trial, self.checkpoints.staging_path(step))
        with self._raise_on_all_ranks(step):
            if self.args.should_save:
                self.checkpoints.commit(step)

    def _stage(self, model: nn.Module, trial: Any, staging: Path) -> None:
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        save_state(staging, f"step_state_{self.accelerator.process_index}", self.step_state())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for name, content in ((IDENTITY, self.run_identity), (FOLDER_STATE, dict(self.folder_state()))):
                (staging / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
            inner = staging / f"checkpoint-{self.state.global_step}"  # where the parent wrote
            for entry in inner.iterdir():
                entry.rename(staging / entry.name)
            inner.rmdir()

    @contextmanager
    def _raise_on_all_ranks(self, step: int) -> Iterator[None]:
        """Where one process cannot write, all raise, in place of waiting for it."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # noqa: BLE001  # whatever it is, the others would wait forever
            error = caught
        failures = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
        first = next((failure for failure in failures if failure is not None), None)
        if first is None:
            return
        if isinstance(error, CheckpointError) or not self.args.should_save:
            raise error or CheckpointError(f"The checkpoint of step {step} could not be saved: {first}")
        raise self.checkpoints.give_up(step, error or OSError(first)) from error

    def step_state(self) -> dict[str, Any]:
        """What this process carries from one step to the next, for `vgpo.checkpoints.save_state`."""
        return {
            "weights": self._weight_hashes(),
            "batching": batching_config(self.args),
            "counters": {name: vars(self)[name] for name in COUNTERS},
            "metrics": {mode: dict(values) for mode, values in self._metrics.items()},
            "buffer": self._buffer_state(),
        }

    def _buffer_state(self) -> dict[str, Any] | None:
        if self._buffered_inputs is None or self._step % self._plan.micro_batches == 0:
            return None
        return buffer_state(self._buffered_inputs)

    def _weight_hashes(self) -> dict[str, str]:
        trained = weight_hash((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        return {"trained": trained, "frozen": self._hash_of_frozen}

    @cached_property
    def _hash_of_frozen(self) -> str:
        """Weights that never change are read once."""
        return weight_hash(
            (name, weight) for name, weight in self.model.named_parameters() if not weight.requires_grad
        )

    # Loading

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As the parent, whose own way leaves weights out that are called otherwise in the file than in the model."""
        target = extract_model_from_parallel(model or self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or isinstance(target, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        kinds = {weight.dtype for weight in target.state_dict().values() if weight.is_floating_point()}
        loaded, report = type(target).from_pretrained(
            resume_from_checkpoint,
            dtype=kinds.pop() if len(kinds) == 1 else torch.float32,  # which holds each of several exactly
            output_loading_info=True,
        )
        lost = {name: sorted(map(str, report[f"{name}_keys"])) for name in ("missing", "unexpected", "mismatched")}
        weights = loaded.state_dict()
        difference = strict_difference(target.state_dict(), weights)
        if any(lost.values()) or difference:
            found = difference or "; ".join(f"{name}: {', '.join(keys[:5])}" for name, keys in lost.items() if keys)
            raise CheckpointError(
                f"{resume_from_checkpoint} does not hold the weights of this model: {found}. Resume with the model "
                "and the version of transformers that saved it."
            )
        target.load_state_dict(weights, strict=True)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._saved_state = self._read_step_state(Path(resume_from_checkpoint))
            self._check_batching_unchanged(resume_from_checkpoint, self._saved_state["batching"])
            self._check_weights_unchanged(resume_from_checkpoint, self._saved_state["weights"])
            skip_epochs(self._sampler, int(self.state.epoch or 0))
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the parent, which would silently keep the learning rate and the like of a run whose settings changed."""
        groups = self.optimizer.param_groups
        asked = [{name: group[name] for name in OPTIMISER_SETTINGS if name in group} for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        groups = self.optimizer.param_groups
        for group, settings in zip(groups, asked, strict=True):
            if group["initial_lr"] not in (0, settings["initial_lr"]):
                group["lr"] *= settings["initial_lr"] / group["initial_lr"]
            group.update(settings)
        rates = {"base_lrs": [group["initial_lr"] for group in groups], "_last_lr": [group["lr"] for group in groups]}
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **rates})

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed where the run was over
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._saved_state is not None:  # no step was left to train
            self._restore_saved_state()
            self.model.train()  # what was not logged yet is of training
        return super()._finalize_training(*args, **kwargs)

    def _check_batching_unchanged(self, checkpoint: str, saved: dict[str, Any]) -> None:
        if changed := changed_values(saved, batching_config(self.args)):
            raise CheckpointError(
                f"{checkpoint} holds the rows and rollouts that come next as they were drawn and split with other "
                f"settings: {'; '.join(changed)}. Resume with those, or begin a new run from these weights."
            )

    def _check_weights_unchanged(self, checkpoint: str, saved: Mapping[str, str]) -> None:
        """Compare what was saved with what is in the model now, sum for sum."""
        found = self._weight_hashes()
        other = [kind for kind in found if found[kind] != saved[kind]]
        if other:
            raise CheckpointError(
                f"After loading {checkpoint} the {' and '.join(other)} weights are not those that were saved (their "
                "sha256 differs). Resume with the model, the adapters and the versions that saved it."
            )

    def _read_step_state(self, checkpoint: Path) -> dict[str, Any]:
        processes = self.accelerator.num_processes
        saved = len(list(checkpoint.glob("step_state_*.pt")))
        if saved != processes:
            raise CheckpointError(
                f"{checkpoint} was saved by {saved} process(es), and {processes} resume it. Start as many as before."
            )
        return load_state(checkpoint, f"step_state_{self.accelerator.process_index}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The last that the parent restores, after it has skipped the rows that are trained on.
        self._restore_saved_state()
        super()._load_rng_state(checkpoint)

    def _restore_saved_state(self) -> None:
        if self._saved_state is not None:
            self.load_step_state(self._saved_state)
            self._saved_state = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # the parent divides by the steps of this process
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `step_state` returned."""
        device = self.accelerator.device
        for name, value in state["counters"].items():
            self.__dict__[name] = to_device(value, device)
        for mode, values in state["metrics"].items():
            self._metrics[mode] = defaultdict(list, values)
        if (buffer := state["buffer"]) is not None:
            self._buffered_inputs = restored_buffer(buffer, device)


class LogBeforeSave(TrainerCallback):
    """Logs an epoch before its last step is saved, and not after it: a resumed run would never log it."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_end_of_epoch = state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps
        control.should_log |= args.logging_strategy == "epoch" and is_end_of_epoch


def batching_config(args: GRPOConfig) -> dict[str, Any]:
    return {name: vars(args)[name] for name in BATCHING_FIELDS}


def skip_epochs(sampler: Sampler | None, num_epochs: int) -> None:
    """Draw the orders of finished epochs: TRL's sampler draws one after the other, and knows no epoch."""
    if isinstance(sampler, RepeatSampler) and sampler.shuffle:
        for _ in range(num_epochs):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
