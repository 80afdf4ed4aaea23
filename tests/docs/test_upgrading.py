"""The page about upgrading names modules that are there, and none that has stayed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "upgrading.md"
MOVED = re.findall(r"^\| `(vgpo\.[\w.]+)` \| `(vgpo\.[\w.]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("old", "new"), [pair for pair in MOVED if not pair[1].rpartition(".")[2][0].isupper()])
def test_a_module_has_moved(old: str, new: str) -> None:
    parent, _, name = new.rpartition(".")
    assert is_module(new) or (is_module(parent) and name.islower())
    assert not is_module(old) or old in ("vgpo.commands.train.train",)


def test_the_table_is_read() -> None:
    assert len(MOVED) > 35
