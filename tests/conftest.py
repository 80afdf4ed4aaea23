"""What all tests share: quiet libraries, lanes, devices, and a browser for those that ask for one."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from tests.devices import DEVICES
from tests.report.chromium import Chromium, require_browser

pytest_plugins = ["tests.lanes"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core, and for what it starts
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    # Every training ends in a garbage collection. By then it need not walk through all that imports have made.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(require_browser(), tmp_path_factory.mktemp("profile"))
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
