"""Steps that are not finite are skipped, many in a row end the training, and weights that are not are never saved."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vgpo.checkpoints import CheckpointError, CheckpointStore
from vgpo.training.collective import Collective
from vgpo.training.settings import GuardSettings


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient norm, or trained weights are not finite."""


class FiniteGuard:
    """Watches the losses of an accumulation window and the gradient norm that ends it.

    Losses are summed on their device; the host synchronises once per step, when the gradient norm is available.
    """

    def __init__(self, collective: Collective, settings: GuardSettings) -> None:
        self.collective = collective
        self.settings = settings
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self._window_loss: Tensor | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of one micro-batch."""
        self._window_loss = loss.detach() if self._window_loss is None else self._window_loss + loss.detach()

    def step_is_finite(self, grad_norm: Tensor | float | None) -> bool:
        """Whether the window's losses and its gradient norm are finite on every process."""
        numbers = [n for n in (self._window_loss, grad_norm) if n is not None]
        self._window_loss = None
        device = self.collective.device
        bad = torch.stack([~torch.isfinite(torch.as_tensor(full_tensor(n), device=device)) for n in numbers]).any()
        finite = not bool(self.collective.sum(bad.float()))
        self.num_skipped += not finite
        self.num_skipped_in_a_row = 0 if finite else self.num_skipped_in_a_row + 1
        return finite

    def state(self) -> dict[str, int]:
        """Its counts, for a checkpoint."""
        return {"num_skipped": self.num_skipped, "num_skipped_in_a_row": self.num_skipped_in_a_row}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore what `state` returned."""
        self.num_skipped = state["num_skipped"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]

    @property
    def exhausted(self) -> bool:
        return self.num_skipped_in_a_row >= self.settings.max_skipped_steps


def full_tensor(number: Tensor | float) -> Tensor | float:
    """The number itself, where a sharded model (FSDP2) gives its gradient norm as a distributed tensor."""
    return number.full_tensor() if isinstance(number, DTensor) else number


def non_finite_weight(model: nn.Module, collective: Collective) -> str | None:
    """Name of the first trained weight that holds a NaN or an infinity on any process; None if all are finite.

    Called by all processes at once; each reads the part of a sharded weight that it holds. Frozen weights, which never
    change, are not read. The host waits for the device once.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained.values()]
    bad = torch.stack([~torch.isfinite(part.detach()).all().to(collective.device) for part in parts])  # (N,)
    found = collective.sum(bad.float()).nonzero().flatten().tolist()
    return list(trained)[found[0]] if found else None


def way_back(checkpoints: CheckpointStore, last_update: int) -> str:
    """Which checkpoint to go back to, and how, as sentences for an error.

    A finite loss shows that the weights it was computed with are valid, but not those after its update.

    Args:
        checkpoints: of the run.
        last_update: step of the last update that was not skipped.
    """
    try:
        sound = checkpoints.complete_steps(before=last_update)
        later = [step for step in checkpoints.steps() if step >= last_update]
    except (CheckpointError, OSError) as error:  # it must not take the place of the error that is reported
        return f"The checkpoints to go back to could not be read: {error}"
    if not sound:
        return "There is no earlier checkpoint to go back to: start a new run with a lower learning_rate."
    move = f"move {', '.join(f'checkpoint-{late}' for late in later)} elsewhere, " if later else ""
    return (
        f"Go back to {checkpoints.path(sound[0])}, the newest checkpoint whose weights gave a finite loss: {move}"
        "lower learning_rate and resume (`--resume true --allow_changes true`)."
    )
