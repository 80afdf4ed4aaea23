"""What all tests share: quiet libraries, the devices, and a browser for those that ask for one."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.devices import DEVICES
from tests.report.chromium import PROGRAM, Chromium

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(str(PROGRAM), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, marked `gpu`, CUDA."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def float32_convolutions() -> None:
    """By default CUDA computes float32 convolutions with the ten bits of TF32."""
    torch.backends.cudnn.allow_tf32 = False
