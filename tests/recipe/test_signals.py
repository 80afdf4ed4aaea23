"""A signal is noted whatever the training does at that moment."""

import io
import signal
import sys

import pytest

from vgpo.recipe.signals import StopOnSignal
from vgpo.rewards.containment import StoppedBySignal


@pytest.mark.parametrize(
    "error", [RuntimeError("reentrant call inside <_io.BufferedWriter>"), OSError(5, "EIO"), ValueError("closed file")]
)
def test_a_signal_inside_a_print_does_not_end_the_training(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Busy())
    stopper = StopOnSignal()
    stopper.on_train_begin()
    stopper.handle(signal.SIGTERM, None)
    assert stopper.signal == signal.SIGTERM


def test_a_signal_outside_of_training_ends_the_run_with_its_status() -> None:
    with pytest.raises(StoppedBySignal) as stop, StopOnSignal().installed():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
