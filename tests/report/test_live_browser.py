"""A page that is drawn again while it is open, in a real browser."""

import re

import pytest

from tests.report.chromium import Chromium
from tests.report.run_records import fill, handed_over, rollout
from vgpo.report.live import LiveReport
from vgpo.run import RunFolder


@pytest.fixture
def live_page(make_run) -> RunFolder:
    folder = fill(make_run(), 30, **{"focus/mean": 0.6})
    LiveReport(folder).draw(live=True)
    return folder


def wait_for(browser: Chromium, condition: str) -> None:
    look = f"const look = () => ({condition}) ? done() : setTimeout(look, 20); look();"
    browser.call("Runtime.evaluate", expression=f"new Promise((done) => {{ {look} }})", awaitPromise=True)


def wait(browser: Chromium, milliseconds: int) -> None:
    pause = f"new Promise((done) => setTimeout(done, {milliseconds}))"
    browser.call("Runtime.evaluate", expression=pause, awaitPromise=True)


def reload(browser: Chromium, how: str) -> None:
    browser.loaded = False
    browser.evaluate(how)
    while not browser.loaded:
        browser.note(browser.receive())
    wait_for(browser, "document.documentElement.dataset.drawn === 'yes'")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_a_reload_keeps_what_the_reader_chose(browser: Chromium, live_page: RunFolder, width: int, theme: str):
    browser.show(live_page.report_path, width, theme=theme)
    assert browser.evaluate("document.getElementById('follow').checked") is False
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.evaluate("document.getElementById('follow').click()")
    browser.evaluate("document.querySelector('.log-axis').click()")
    slide = "slider.value = 30; for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind, all))"
    browser.evaluate(
        f"{{ const [slider, all] = [document.querySelector('.smoothing'), {{ bubbles: true }}]; {slide} }}"
    )
    browser.evaluate("document.querySelectorAll('#outcome-choice button')[2].click()")
    browser.evaluate("document.querySelectorAll('#shade-choice button')[1].click()")
    browser.evaluate("document.querySelector('#metric-list button').click()")
    slider = "slider.value = 2; for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind, all))"
    browser.evaluate(
        f"{{ const [slider, all] = [document.getElementById('step-choice'), {{ bubbles: true }}]; {slider} }}"
    )
    chosen = "document.getElementById('step-label').textContent"
    before = browser.evaluate(chosen)
    browser.evaluate("scrollTo(0, 700)")
    live_page.write_rollouts(*handed_over([rollout(31, 62, 0.0)]))
    LiveReport(live_page).draw(live=True)
    reload(browser, "document.getElementById('reload').click()")
    assert browser.evaluate("groupsOf(DATA.runs[0]).at(-1)[0].step") == 31
    assert browser.evaluate("document.querySelectorAll('#metric-charts svg.chart').length") == 1
    assert browser.evaluate(chosen) == before
    assert browser.evaluate("document.getElementById('follow').checked") is True
    assert browser.evaluate("document.querySelector('.log-axis').checked") is True
    assert browser.evaluate("document.querySelector('.smoothing').value") == "30"
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map((one) => one.textContent)"
    assert browser.evaluate(pressed)[-2:] == ["✗ Wrong", "Token factor"]
    wait_for(browser, "scrollY === 700")
    assert browser.complaints == []


CLOCK_SET_BY_HAND = """
  const real = performance.now.bind(performance);
  performance.now = () => real() + (window.skipped ?? 0);
"""


def test_a_page_reloads_itself_when_asked_to_and_nobody_reads(browser: Chromium, live_page: RunFolder):
    browser.show(live_page.report_path)
    browser.evaluate(CLOCK_SET_BY_HAND)
    # Not asked to: nothing happens however long it stands.
    browser.evaluate("window.skipped = 1e6; window.same = true")
    wait(browser, 1500)
    assert browser.evaluate("window.same") is True
    assert re.fullmatch(r"\d+ s", browser.evaluate("document.getElementById('age').textContent"))
    # Asked to, but a reader has just moved the pointer.
    browser.evaluate("document.getElementById('follow').click()")
    browser.point_at(30, 30)
    wait(browser, 1500)
    assert browser.evaluate("window.same") is True
    reload(browser, "window.skipped = 2e6")
    assert browser.evaluate("window.same ?? null") is None
    assert browser.complaints == []
