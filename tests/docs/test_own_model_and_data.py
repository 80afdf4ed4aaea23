"""The pages that a new user follows are followed word by word, each in an empty folder."""

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from typer.testing import CliRunner

from vgpo.cli import app

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    file: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    return (Block(*fence.groups()) for fence in FENCE.finditer((DOCS / page).read_text(encoding="utf-8")))


def flat(text: str) -> str:
    """Without frames and widths, which differ from terminal to terminal."""
    return " ".join(text.replace("│", " ").replace("─", " ").split())


def run(lines: str) -> str:
    """What the commands print. Those of Python run in this process, which has loaded the libraries already."""
    output = ""
    for words in map(shlex.split, lines.splitlines()):
        if words[0] == "vgpo":
            done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, f"{words}\n{done.output}"
            output += done.stdout
        elif words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
        else:
            output += subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return flat(output)


@pytest.mark.train
@pytest.mark.parametrize("page", ["own_model_and_data.md", "sft_cold_start.md"])
def test_every_block_does_what_the_page_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    output = ""
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "bash":
            output = run(block.text)
        else:
            assert block.kind == "text"
            for line in block.text.splitlines():
                assert flat(line.rstrip("…")) in output, line
