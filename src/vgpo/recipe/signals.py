"""Signals that end a run after the current step, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vgpo.rewards.containment import StoppedBySignal

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when any process receives a signal.

    A signal outside of training ends the run immediately, as does an interrupt (Ctrl-C) after another signal.
    The exit status is 128 + the signal's number, as in shells.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.trains = False
        self.training_is_over = False  # and not only stopped: a signal may arrive while the last checkpoint is written

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block.

        Raises:
            StoppedBySignal: one ended the block.
            RuntimeError: other code called `sys.exit`, with any status, before the run was finished.
        """
        before = {number: signal.signal(number, self.handle) for number in STOPPING}
        try:
            yield
        except StoppedBySignal:
            raise
        except SystemExit as end:
            raise RuntimeError(
                f"sys.exit({end.code!r}) was called in a run that is not finished; the traceback above shows where"
            ) from end
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, signal.Signals(number)
        if not self.trains or (number == signal.SIGINT and not first):
            raise StoppedBySignal(128 + number)
        if first:
            text = f"\n{self.signal.name}: finishing and saving the current step; press Ctrl-C to exit immediately"
            # The signal may have interrupted a print, in which a stream does not allow another one.
            with suppress(RuntimeError, OSError, ValueError):
                Console(stderr=True).print(text, highlight=False)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trains = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trains = False
        self.training_is_over = state.global_step >= state.max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._received_by_any(args):
            control.should_save = control.should_training_stop = True

    def _received_by_any(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.signal is not None
        received = torch.tensor(int(self.signal or 0), device=args.device)
        dist.all_reduce(received, dist.ReduceOp.MAX)
        if received:
            self.signal = signal.Signals(int(received))
        return bool(received)

    def leave(self) -> None:
        """End the process if a signal was received."""
        if self.signal is not None:
            raise StoppedBySignal(128 + self.signal)
