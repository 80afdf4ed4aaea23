"""The page of a study in a real browser."""

from pathlib import Path

from tests.report.chromium import HIDDEN, Chromium
from tests.study.test_outputs import HOSTILE, study
from vgpo.study.outputs import write_outputs


def test_the_page_is_drawn_without_a_complaint(tmp_path: Path, browser: Chromium) -> None:
    page = write_outputs(tmp_path / "out", study(tmp_path, methods=("dapo", "vgpo", HOSTILE)))["page"]
    for width, theme in ((1280, "light"), (390, "dark")):
        browser.show(page, width, theme=theme)
        assert browser.evaluate("document.documentElement.dataset.drawn") == "yes"
        assert browser.evaluate("document.querySelectorAll('#curves-0 svg.chart').length") == 5
        assert browser.evaluate("document.querySelectorAll('#curves-0 .band').length") == 14
        assert browser.evaluate("document.querySelectorAll('#deciles-0 svg.chart').length") == 3
        assert browser.evaluate("document.querySelectorAll('circle.seed').length") == 9
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        browser.keep_picture(f"study-{width}-{theme}")
        assert browser.complaints == []


def test_no_column_of_a_wide_table_is_cut_off(tmp_path: Path, browser: Chromium) -> None:
    page = write_outputs(tmp_path / "out", study(tmp_path, methods=("dapo", "vgpo", HOSTILE)))["page"]
    browser.show(page, 1400)
    assert browser.evaluate(HIDDEN) == []
