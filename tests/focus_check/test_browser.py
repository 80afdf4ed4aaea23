"""The page of a check in a real browser."""

from pathlib import Path

import pytest

from tests.focus_check.made import check, gaining
from tests.report.chromium import FAINT, NAMELESS, Chromium
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
    browser.keep_picture(f"focus-check-{width}-{theme}")
    assert browser.complaints == []


def test_the_figures_fit_on_a_phone(browser: Chromium, page: Path) -> None:
    browser.show(page, width=400)
    hidden = "(() => { const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth; })()"
    assert browser.evaluate(hidden) == 0
