"""Charts of metrics in a real browser: cursor, zoom, smoothing, axes, and what is downloaded."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.texts import NASTY
from tests.report.chromium import FAINT, NAMELESS, Chromium
from tests.report.run_records import evaluation, fill
from vgpo.report import write_report
from vgpo.run.storage import append_records
from vgpo.text import visible

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def page(make_run, tmp_path: Path) -> Path:
    runs = [fill(make_run(name), 30, loss=-0.5) for name in ("dapo", "vgpo")]
    runs[0].write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.55, 0.65)})
    return write_report([folder.path for folder in runs], tmp_path / "report.html")


def readouts(browser: Chromium) -> list[str]:
    return browser.evaluate("[...document.querySelectorAll('#charts .readout')].map((one) => one.textContent)")


def ticks(browser: Chromium) -> list[str]:
    """Labels of the first chart's axes, those of y first."""
    labels = "#charts figure:first-child svg text:not(.axis-title)"
    return browser.evaluate(f"[...document.querySelectorAll('{labels}')].map((one) => one.textContent)")


def place_in_chart(browser: Chromium, step: float) -> tuple[float, float]:
    """Where a step is in the first chart, on the screen."""
    browser.evaluate("document.querySelector('#charts svg').scrollIntoView({ block: 'center' })")
    script = f"""(() => {{
      const [chart] = drawnCharts;
      const box = chart.svg.getBoundingClientRect();
      return [box.x + chart.scale.x({step}) * box.width / PLOT.width, box.y + box.height / 2];
    }})()"""
    return tuple(browser.evaluate(script))


def test_figures_under_a_chart_are_of_the_last_tenth(browser: Chromium, page: Path, make_run, tmp_path: Path):
    browser.show(page)
    # Accuracy is a tenth of the step; of 30 steps the last three.
    assert readouts(browser)[0] == "mean of the last tenth2.9002.900"
    browser.show(write_report([fill(make_run("short"), 4).path], tmp_path / "short.html"))
    assert readouts(browser)[0] == "last0.400"
    browser.show(write_report([fill(make_run("single"), 1).path], tmp_path / "single.html"))
    assert readouts(browser)[0] == "one point, step 10.100"
    assert browser.complaints == []


def test_all_charts_have_one_cursor(browser: Chromium, page: Path):
    browser.show(page)
    browser.evaluate("document.querySelector('#charts svg').focus()")
    browser.press("ArrowLeft")
    assert readouts(browser) == ["step 292.9002.900", "step 290.0340.034"]
    assert browser.evaluate("document.querySelectorAll('#charts .marks .cursor').length") == 2
    assert browser.evaluate("document.querySelectorAll('#charts .readout[aria-live]').length") == 1
    browser.press("Home")
    assert readouts(browser) == ["step 10.1000.100", "step 11.0001.000"]
    browser.evaluate("document.activeElement.blur()")
    browser.point_at(*place_in_chart(browser, 10))
    assert readouts(browser) == ["step 101.0001.000", "step 100.1000.100"]
    browser.point_at(2, 2)
    assert readouts(browser)[0].startswith("mean of the last tenth")


def test_a_drag_zooms_all_charts_and_a_double_click_resets(browser: Chromium, page: Path):
    browser.show(page)
    reset = "document.querySelector('.reset-zoom').disabled"
    assert browser.evaluate(reset) is True
    browser.drag(place_in_chart(browser, 10), place_in_chart(browser, 20))
    assert browser.evaluate("chartView.range") == [pytest.approx(10, abs=0.2), pytest.approx(20, abs=0.2)]
    assert ticks(browser)[-3:] == ["14", "16", "18"]
    assert browser.evaluate("document.querySelectorAll('.brush').length") == 0
    shown = "[...drawnCharts].map((chart) => chart.xRange[1] < 21)"
    assert browser.evaluate(shown) == [True, True]
    browser.evaluate("document.querySelector('#charts svg').dispatchEvent(new Event('dblclick'))")
    assert browser.evaluate("chartView.range") is None
    browser.drag(place_in_chart(browser, 5), place_in_chart(browser, 8))
    browser.evaluate("document.querySelector('.reset-zoom').click()")
    assert browser.evaluate(f"[chartView.range, {reset}]") == [None, True]
    assert browser.complaints == []


def test_keys_zoom(browser: Chromium, page: Path):
    browser.show(page)
    browser.evaluate("document.querySelector('#charts svg').focus()")
    for _ in range(15):
        browser.press("ArrowLeft")
    browser.press("+")
    assert browser.evaluate("chartView.range") == [7.5, 22.5]  # half of 30 steps, around step 15
    browser.press("-")
    assert browser.evaluate("chartView.range") == [0, 30]
    browser.press("-")
    assert browser.evaluate("chartView.range") is None
    browser.press("+")
    browser.press("0")
    assert browser.evaluate("chartView.range") is None


def test_smoothing_follows_the_slider(browser: Chromium, page: Path):
    browser.show(page)
    lines = "document.querySelectorAll('#charts figure:first-child g.run-0 path').length"
    slide = "document.querySelector('.smoothing').value = {}; document.querySelector('.smoothing').dispatchEvent({})"
    assert browser.evaluate(lines) == 2  # as logged, and the running mean
    browser.evaluate(slide.format(0, "new Event('input')"))
    assert browser.evaluate(f"[{lines}, document.querySelector('.chart-controls output').textContent]") == [1, "off"]
    browser.evaluate(slide.format(50, "new Event('input')"))
    # Half of 30 points: seven on each side. The mean of 0.1 to 0.8 at the first.
    assert browser.evaluate("runningMean([...drawnCharts][0].chart.series[0].values, 50)[0]") == pytest.approx(0.45)


def test_an_axis_is_logarithmic_where_it_can_be(browser: Chromium, make_run, tmp_path: Path):
    folder = make_run()
    lines = [{"step": step, "entropy": 10.0 ** -(step % 5), "grad_norm": step - 2.0} for step in range(1, 21)]
    append_records(folder.metrics_path, lines)
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    browser.evaluate("document.querySelector('.log-axis').click()")
    assert ticks(browser)[:5] == [f"1e{MINUS}4", "0.001", "0.01", "0.1", "1"]
    titles = browser.evaluate("[...document.querySelectorAll('.axis-title')].map((one) => one.textContent)")
    assert titles == ["nats (log)", "step", "L2 norm (linear: not all values are above 0)", "step"]
    heights = browser.evaluate("[1, 0.1, 0.01].map([...drawnCharts][0].scale.y)")
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    browser.evaluate("document.querySelector('.log-axis').click()")
    assert ticks(browser)[0] == "0.0"


def test_a_chart_is_downloaded_as_values_and_as_an_image(browser: Chromium, page: Path):
    browser.show(page)
    rows = list(csv.reader(io.StringIO(browser.saved("#charts", "CSV")[1].decode())))
    assert rows[0] == ["step", "dapo", "vgpo"]
    assert [rows[1], rows[30]] == [["1", "0.1", "0.1"], ["30", "3", "3"]]
    image = Image.open(io.BytesIO(browser.saved("#charts", "PNG")[1]))
    assert image.size == (3 * (340 + 24), 3 * (214 + 3 * 16 + 24))
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(252, 252, 251), (0, 114, 178), (201, 81, 10)} <= colours  # the page, and both runs
    assert browser.complaints == []


@pytest.mark.parametrize("ending", ["CSV", "PNG"])
def test_a_button_saves_a_file_named_after_the_chart(browser: Chromium, page: Path, ending: str):
    browser.show(page)
    browser.evaluate("HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; }")
    buttons = "[...document.querySelectorAll('#charts figure:first-child .tools button')]"
    browser.evaluate(f"{buttons}.find((one) => one.textContent === '{ending}').click()")
    wait = "new Promise((done) => { const look = () => (window.saved ? done(saved) : setTimeout(look, 10)); look(); })"
    name, address = browser.evaluate(wait)
    assert name == f"accuracy.{ending.lower()}"
    assert address.startswith("blob:")
    assert browser.complaints == []


def test_nasty_names_of_runs_are_no_formulas(browser: Chromium, page: Path):
    browser.show(page)
    names = list(NASTY.values())
    series = [{"run": number, "steps": [1], "values": [-1.5]} for number in range(len(names))]
    browser.evaluate(f"window.names = {json.dumps(names)}")
    text = browser.evaluate(f"csvOf(lineTable({{ series: {json.dumps(series)} }}, (run) => names[run]))")
    head, row = csv.reader(io.StringIO(text))
    assert row == ["1", *["-1.5"] * len(names)]
    for cell, name in zip(head[1:], names, strict=True):
        assert cell.removeprefix("'") == visible(name)
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\n"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_and_all_controls_have_names(browser: Chromium, page: Path, theme: str):
    browser.show(page, theme=theme)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.evaluate(FAINT) == []
    assert browser.evaluate(NAMELESS) == []
