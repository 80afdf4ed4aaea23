import datasets
import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bars(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
