"""The page of a check in a real browser."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.focus_check.made import check, gaining
from tests.report.chromium import FAINT, NAMELESS, UNSAVED, Chromium
from vgpo.focus_check.page import render_check

LONG = "a-checkpoint-with-a-name-of-many-words/" * 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "focus_check.html"
    found = check(gaining(12, strata=("charts", "maps") * 6), model=LONG, data=LONG, column="kind")
    path.write_text(render_check(found), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_it_fits_and_can_be_read(browser: Chromium, page: Path, width: int, theme: str) -> None:
    browser.show(page, width=width, theme=theme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(FAINT) == []
    assert browser.evaluate(NAMELESS) == []
    assert browser.evaluate(UNSAVED) == []
    browser.keep_picture(f"focus-check-{width}-{theme}")
    assert browser.complaints == []


def test_the_figures_fit_on_a_phone(browser: Chromium, page: Path) -> None:
    browser.show(page, width=400)
    hidden = "(() => { const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth; })()"
    assert browser.evaluate(hidden) == 0


def test_charts_are_saved_as_values_and_as_images(browser: Chromium, page: Path) -> None:
    browser.show(page)
    name, content = browser.saved("#focus-reading", "CSV")
    head, *rows = csv.reader(io.StringIO(content.decode()))
    assert name == "focus-reading.csv"
    assert head[:4] == ["percent of the response", "right", "right (low)", "right (high)"]
    measures = check(gaining(12)).measures
    values = [one.value for one in measures.states["reading"].right_by_decile]
    assert [row[1] for row in rows] == ["" if value is None else str(value) for value in values]
    head, *rows = csv.reader(io.StringIO(browser.saved("#difference-reading", "CSV")[1].decode()))
    assert (head, len(rows)) == (["row", "right less wrong"], 12)
    assert float(rows[0][1]) == measures.questions[0].focus_difference["reading"]
    for figure, entries in (("#focus-reading", 2), ("#difference-reading", 0)):
        image = Image.open(io.BytesIO(browser.saved(figure, "PNG")[1]))
        assert image.size == (3 * (420 + 24), 3 * (232 + 16 * (entries + 1) + 24))
    assert browser.complaints == []
