"""Columns of numbers say what they are: a head without a tooltip cannot be drawn, and no table has other heads."""

import re
from pathlib import Path

import jinja2
import pytest

from tests.pages.columns import unexplained_columns
from vgpo.pages import page_environment
from vgpo.pages.tables import Column

SOURCE = Path(__file__).resolve().parents[2] / "src" / "vgpo"
TEMPLATES = sorted(SOURCE.rglob("*.html.jinja"))


def test_a_column_of_numbers_without_a_tooltip_is_refused() -> None:
    assert Column("Task").about == ""
    with pytest.raises(ValueError, match="column 'p': found numbers without a tooltip"):
        Column("p", "", "number over")


def test_heads_are_escaped_and_have_their_tooltip() -> None:
    template = "{% from 'components.jinja' import heads %}{{ heads([column(label, label, 'number')]) }}"
    page = page_environment(jinja2.DictLoader({"page": template})).get_template("page").render(label='<b>"')
    assert 'class="number"><span class="tip" title="&lt;b&gt;&#34;">&lt;b&gt;&#34;</span></th>' in page


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_tables_have_their_heads_from_the_shared_macro(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<thead" not in text
    tables = re.findall(r"<table(.*?)</table>", text, re.DOTALL)
    headless = [table[:80] for table in tables if "heads(" not in table and 'class="settings"' not in table]
    assert headless == []


def test_numbers_below_a_head_without_a_tooltip_are_found() -> None:
    head = '<thead><tr><th>Run</th><th><span title="mean">A</span></th><th>B</th></tr></thead>'
    page = f'<table>{head}<tbody><tr><th>x</th><td class="number">1</td><td class="number">2</td></tr></tbody></table>'
    assert unexplained_columns(page) == ["table 1, column 3: B"]
    assert unexplained_columns(page.replace("<th>B", '<th><i title="b"></i>B')) == []
    assert unexplained_columns('<table><tr><td class="number">1</td></tr></table>') == ["table 1, column 0: no head"]
