"""A small run to write and draw."""

from pathlib import Path

import pytest

from vgpo.run import RunFolder


@pytest.fixture
def outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that belongs to no repository."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def make_run(tmp_path: Path, outside_git: Path):
    def make(name: str = "vgpo", **config) -> RunFolder:
        return RunFolder.create(tmp_path / name, config, seed=3, command=["vgpo", "train"])

    return make
