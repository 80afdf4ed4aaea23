"""What all tests share: quiet libraries, lanes, and a browser for those that ask for one."""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.report.chromium import Chromium, require_browser

pytest_plugins = ["tests.lanes"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a worker for each core; read when torch is imported, later than this file


def pytest_collection_finish() -> None:
    # Every training ends in a garbage collection. By then it need not walk through all that imports have made.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(require_browser(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
