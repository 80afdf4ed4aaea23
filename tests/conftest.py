"""What all tests share: quiet libraries, and a browser for those that ask for one."""

import os
from collections.abc import Iterator

import pytest

from tests.report.chromium import PROGRAM, Chromium

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(str(PROGRAM), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
