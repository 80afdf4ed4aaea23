"""The devices on which a check runs: always the CPU, and CUDA under the marker `gpu` where there is a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

ON_CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # A warning that only CUDA gives must not hide the figures of a check: it is shown in the summary.
    pytest.mark.filterwarnings("default"),
)


def on_cuda(*values: Any, id: str) -> Any:
    """Values for `pytest.mark.parametrize` that only a CUDA device runs."""
    return pytest.param(*values, marks=ON_CUDA, id=id)


DEVICES = [pytest.param(torch.device("cpu"), id="cpu"), on_cuda(torch.device("cuda"), id="cuda")]
