"""Checkpoints of the families, built once per session: `pytest_plugins = ["tests.families.fixtures"]`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from tests.families.build import LoadFamily, build_checkpoint


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint's folder for a family's name."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            build_checkpoint(name, path)
        return path

    return folder


@pytest.fixture(scope="session")
def load_family(family_folder: Callable[[str], Path]) -> LoadFamily:
    """A model of its own in evaluation mode, float32, and its processor, for a family's name."""

    def load(name: str, **model_kwargs: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        path = family_folder(name)
        model = AutoModelForImageTextToText.from_pretrained(path, **model_kwargs)
        return model, AutoProcessor.from_pretrained(path)

    return load
