"""Sums first, one division at the end; phases that do not overlap."""

import pytest
import torch

from vgpo.ratio import Ratio
from vgpo.training import metrics
from vgpo.training.collective import SingleProcess
from vgpo.training.metrics import PhaseTimer, RunningRatios


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_inside_another_counts_for_itself_only(clock):
    timer = PhaseTimer()
    with timer.phase("update"):
        clock[0] += 1
        with timer.phase("preparation"):
            clock[0] += 2
            with timer.phase("generation"):
                clock[0] += 4
            with timer.phase("reward"):
                clock[0] += 8
        clock[0] += 16
    assert timer.flush(2) == {
        "time/generation": 2.0, "time/reward": 4.0, "time/preparation": 1.0, "time/update": 8.5,
    }  # fmt: skip
    assert timer.flush(1) == {}


def test_a_phase_that_raises_is_still_counted(clock):
    timer = PhaseTimer()

    def fail():
        clock[0] += 3
        raise KeyError

    with pytest.raises(KeyError), timer.phase("reward"):
        fail()
    assert timer.flush(1) == {"time/reward": 3.0}


def test_micro_batches_count_by_their_size_not_alike():
    ratios = RunningRatios()
    ratios.add({"mean": Ratio(torch.tensor(1.0), torch.tensor(1)), "empty": Ratio(torch.tensor(0), torch.tensor(0))})
    ratios.add({"mean": Ratio(torch.tensor(6.0), torch.tensor(3)), "empty": Ratio(torch.tensor(0), torch.tensor(0))})
    assert ratios.flush(SingleProcess()) == {"mean": 7 / 4}
    assert ratios.flush(SingleProcess()) == {}
