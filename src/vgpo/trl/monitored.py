"""Monitoring of a run: metrics, alarms, and a guard against non-finite steps."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vgpo.metric_names import ALARM_PREFIX, GUARD_SKIPPED_STEPS
from vgpo.training.alarms import AlarmError, Alarms
from vgpo.training.batches import to_device
from vgpo.training.collective import AccelerateCollective
from vgpo.training.finite_guard import FiniteGuard, NonFiniteError, non_finite_weight, way_back
from vgpo.training.metrics import PhaseTimer, RunningRatios, means
from vgpo.training.settings import AlarmSettings, GuardSettings, settings_from
from vgpo.trl.config import VGPOConfig
from vgpo.trl.resumable import ResumableTrainer

logger = logging.getLogger(__name__)


class MonitoredTrainer(ResumableTrainer):
    """A resumable trainer that skips steps that are not finite, raises alarms, and logs means over all processes."""

    args: VGPOConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ratios = RunningRatios()
        self._timer = PhaseTimer()
        self._num_unlogged_steps = 0
        self._last_update = 0  # the step of it; skipped ones may have come after it
        self._save_is_due = False  # a save was postponed until a step is finite again
        super().__init__(*args, **kwargs)
        self.collective = AccelerateCollective(self.accelerator)
        self._guard = FiniteGuard(self.collective, settings_from(GuardSettings, self.args))
        alarms = settings_from(AlarmSettings, self.args)
        self._alarms = Alarms(alarms, is_main_process=self.args.should_save)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of training; an evaluation between two steps is not one."""
        return self._timer.phase(name) if self.model.training else nullcontext()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent.

        Raises:
            AlarmError: alarms of a run with `alarms="stop"` have ended it, with a checkpoint if its step was finite.
            NonFiniteError: too many steps in a row were skipped, or the last one; or trained weights are not finite.
        """
        result = super().train(*args, **kwargs)
        if self._guard.num_skipped_in_a_row and self.state.global_step >= self.state.max_steps:
            self._stop_after_skipped_steps()
        if self._alarms.stopping:
            raise AlarmError("\n".join(self._alarms.stopping))
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._timer.phase("update"):
            loss = super().training_step(*args, **kwargs)
        self._guard.add_loss(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._num_unlogged_steps += 1
        # A gradient scaler (fp16) finds overflows and skips them itself, as a matter of course.
        if self.accelerator.scaler is None and not self._guard.step_is_finite(grad_norm):
            # An optimizer leaves parameters without a gradient alone: weights, moments and decay.
            model.zero_grad(set_to_none=True)
            logger.warning(
                "Step %d skipped: its loss or gradient norm is not finite (%d in a row).",
                self.state.global_step + 1, self._guard.num_skipped_in_a_row,
            )  # fmt: skip
            if self._guard.exhausted:
                self._stop_after_skipped_steps()
            return grad_norm
        self._last_update = self.state.global_step + 1
        if self._save_is_due:
            self.control.should_save = True
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._num_unlogged_steps:
            metrics = {
                **self._ratios.flush(self.collective),
                **self._timer.flush(self._num_unlogged_steps),
                GUARD_SKIPPED_STEPS: float(self._guard.num_skipped),
            }
            self._num_unlogged_steps = 0
            for name, value in metrics.items():
                self._metrics["train"][name] = [value]
            self._update_alarms({**logs, **means(self._metrics["train"])})
        super().log(logs, start_time)

    def _update_alarms(self, metrics: Mapping[str, float]) -> None:
        """Log the active alarms, and end the training after a checkpoint if one of them stops it."""
        step = self.state.global_step
        for name in self._alarms.update(step, metrics, self.checkpoints, suspect=self._last_update):
            self._metrics["train"][ALARM_PREFIX + name] = [1.0]
        if self._alarms.stopping:
            self.control.should_save = self.control.should_training_stop = True

    def _stop_after_skipped_steps(self) -> None:
        """End the training at a skipped step; the current weights go to `last_good`.

        Raises:
            NonFiniteError: always.
        """
        folder = Path(self.args.output_dir) / "last_good"
        cause, weights = None, f"are in {folder}"
        try:
            self.save_model(str(folder))
        except NonFiniteError:
            raise
        except Exception as error:  # noqa: BLE001  # a full disk must not hide what the weights are saved for
            cause, weights = error, f"could not be written to {folder} ({error})"
        skipped = self._guard.num_skipped_in_a_row
        raise NonFiniteError(
            f"{skipped} steps in a row had a non-finite loss or gradient norm (the last one: step "
            f"{self._last_update + skipped}). The weights from before the first of them {weights}, but no loss "
            f"computed with them was finite. {self._way_back()} Look at the rewards of the last rollouts too, lower "
            "max_grad_norm, or raise max_skipped_steps."
        ) from cause

    def _way_back(self) -> str:
        return way_back(self.checkpoints, self._last_update)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the parent, but after a skipped step the save waits for a finite one: the weights may be the reason."""
        self._save_is_due = self._guard.num_skipped_in_a_row > 0
        if self._save_is_due:
            logger.warning("Step %d was skipped, so it has no checkpoint.", self.state.global_step)
            return
        self._check_weights_are_finite()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent.

        Raises:
            NonFiniteError: a trained weight holds a NaN or an infinity; nothing is written.
        """
        if self._staging is None:  # a checkpoint is checked before it is begun
            self._check_weights_are_finite()
        super().save_model(output_dir, _internal_call)

    def _check_weights_are_finite(self) -> None:
        name = non_finite_weight(self.model, self.collective)
        if name is not None:
            raise NonFiniteError(
                f"After the update of step {self._last_update} the trained weights hold a NaN or an infinity, the "
                f"first in {name}: they are not saved. {self._way_back()}"
            )

    def step_state(self) -> dict[str, Any]:
        return super().step_state() | {
            "guard": self._guard.state(),
            "alarms": self._alarms.state(),
            "num_unlogged_steps": self._num_unlogged_steps,
            "ratios": self._ratios.sums,
        }

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        super().load_step_state(state)
        self._guard.load_state(state["guard"])
        self._last_update = self.state.global_step - self._guard.num_skipped_in_a_row
        self._alarms.load_state(state["alarms"])
        self._num_unlogged_steps = state["num_unlogged_steps"]
        self._ratios.sums = to_device(state["ratios"], self.accelerator.device)
