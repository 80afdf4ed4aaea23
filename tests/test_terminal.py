"""`vgpo.terminal`: consoles."""

import pytest
from rich.table import Table

from vgpo.terminal import table_console


def test_a_table_in_a_file_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    heads = [f"column {number}" for number in range(20)]
    monkeypatch.delenv("COLUMNS", raising=False)
    table_console().print(Table(*heads, box=None))
    (line,) = capsys.readouterr().out.splitlines()
    assert all(head in line for head in heads)
    monkeypatch.setenv("COLUMNS", "80")  # the user's choice
    table_console().print(Table(*heads, box=None))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
