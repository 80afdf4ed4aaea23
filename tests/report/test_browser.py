"""The page in a real browser."""

import math
import re
from pathlib import Path

import pytest

from tests.report.chromium import Chromium
from tests.report.run_records import ATTACKS, evaluation, fill, handed_over, hostile_run, rollout
from vgpo.report import write_report
from vgpo.run.storage import append_records


@pytest.fixture
def page(make_run, tmp_path: Path) -> Path:
    runs = [fill(make_run(name), 30, **{"focus/mean": 0.6}) for name in ("dapo", "vgpo")]
    runs[0].write_evaluation({"before": evaluation(0.4, 0.35, 0.45), "after": evaluation(0.6, 0.55, 0.65)})
    return write_report([folder.path for folder in runs], tmp_path / "report.html")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_everything_is_drawn_without_a_complaint(browser: Chromium, page: Path, width: int, theme: str):
    browser.show(page, width, theme=theme)
    assert browser.evaluate("document.documentElement.dataset.drawn") == "yes"
    assert browser.evaluate("document.querySelectorAll('#charts svg.chart').length") == 3
    assert browser.evaluate("document.querySelectorAll('#focus-curves svg.chart').length") == 2
    assert browser.evaluate("document.querySelectorAll('#rollout-list button').length") == 12
    assert browser.evaluate("document.querySelector('#rollout img').naturalWidth") == 20
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.keep_picture(f"report-{width}-{theme}")
    assert browser.complaints == []


def test_numbers_of_a_chart_fit_their_size(browser: Chromium, make_run, tmp_path: Path):
    """Differences of float32 rounding are not a row of zeros."""
    folder = fill(make_run(), 4, **{"sampling/log_prob_gap": 8.7e-8})
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    charts = browser.evaluate("[...document.querySelectorAll('#charts .readout')].map(line => line.textContent)")
    assert "last8.7e\u22128" in charts
    ticks = "[...document.querySelectorAll('#charts svg text:not(.axis-title)')].map(label => label.textContent)"
    labels = browser.evaluate(ticks)
    assert labels
    assert max(map(len, labels)) <= len("1.0e-8")
    spoken = "[scaled(0, 8), scaled(0.25, 2), scaled(-3e-5, 3), scaled(0.4, 0), scaled(1200, 0), scaled(null, 3)]"
    assert browser.evaluate(spoken) == ["0.0000", "0.25", "\u22123.0e\u22125", "0", "1200", "–"]


def test_tokens_answer_to_keys_and_pointer(browser: Chromium, page: Path):
    browser.show(page)
    readout = "document.querySelector('.token-readout').textContent"
    assert browser.evaluate("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1
    browser.evaluate("document.querySelector('.token').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    # A^V = 0.7 * 1.5 * 1.1
    expected = "token 3 of 4  2 · focus 0.750 · token factor 1.500 · advantage +1.155 · gate passed"
    assert browser.evaluate(readout) == expected
    browser.press("Home")
    assert browser.evaluate(readout).startswith("token 1 of 4 two")
    place = "(() => { const box = document.querySelectorAll('.token')[3].getBoundingClientRect();"
    x, y = browser.evaluate(f"{place} return [box.x + box.width / 2, box.y + box.height / 2]; }})()")
    browser.point_at(x, y)
    assert browser.evaluate(readout).startswith("token 4 of 4 .")
    assert browser.evaluate("document.querySelectorAll('.token.gated').length") == 1


def test_the_advantage_of_a_token_is_the_stored_one(browser: Chromium, make_run, tmp_path: Path):
    folder = make_run()
    folder.write_rollouts(*handed_over([rollout(reward=None, token_advantages=[0.25, -0.5, None, 0.0])]))
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    readout = []
    for _ in range(3):
        browser.evaluate(f"document.querySelectorAll('.token')[{len(readout)}].focus()")
        readout.append(browser.evaluate("document.querySelector('.token-readout').textContent"))
    shown = [re.search(r"advantage (\S+)", text)[1] for text in readout]
    assert shown == ["+0.250", "\N{MINUS SIGN}0.500", "–"]
    assert browser.evaluate("document.querySelector('#rollout-list .facts').textContent").startswith("not graded")
    for number, listed in ((1, "None stored."), (2, "None stored.")):
        browser.evaluate(f"document.querySelectorAll('#outcome-choice button')[{number}].click()")
        assert browser.evaluate("document.querySelector('#rollout-list').textContent") == listed
    assert browser.complaints == []


def test_shades_follow_the_switch(browser: Chromium, page: Path):
    browser.show(page)
    values = "[...document.querySelectorAll('.token')].map((t) => Number(t.style.getPropertyValue('--value')))"
    assert browser.evaluate(values) == [0.5, 0, 1, 0.5]
    browser.evaluate("document.querySelectorAll('#shade-choice button')[1].click()")
    assert browser.evaluate(values) == [0, 1, 1, 0]
    assert browser.evaluate("document.querySelectorAll('.token.below').length") == 1


def test_rollouts_are_filtered(browser: Chromium, page: Path):
    browser.show(page)
    browser.evaluate("document.querySelectorAll('#outcome-choice button')[2].click()")
    assert browser.evaluate("document.querySelectorAll('#rollout-list .right').length") == 0
    assert browser.evaluate("document.querySelectorAll('#rollout-list .wrong-answer').length") == 6
    assert "accuracy_reward0.00" in browser.evaluate("document.querySelector('.numbers').textContent")


def test_gaps_and_means_are_told(browser: Chromium, make_run, tmp_path: Path):
    runs = [make_run("short"), make_run("long")]
    for folder, num_steps in zip(runs, (8, 800), strict=True):
        values = [math.nan if step in (3, 5, 8, 401, 402) else 1.0 for step in range(1, num_steps + 1)]
        lines = [{"step": step, "entropy": value} for step, value in enumerate(values, start=1)]
        append_records(folder.metrics_path, lines)
    browser.show(write_report([folder.path for folder in runs], tmp_path / "gaps.html"))
    drawn = "document.querySelector('#charts .run-0 .run-line').getAttribute('d')"
    assert re.sub("[0-9. ]+", "", browser.evaluate(drawn)) == "MLMML"  # 1 2, 4, 6 7
    assert browser.evaluate(drawn).count(" 98.0") == 5  # in the middle of the height: a gap is no 0
    smoothed = browser.evaluate("document.querySelector('#charts .run-1 .run-line:not(.raw)').getAttribute('d')")
    assert smoothed.count("M") == 2
    assert browser.evaluate("document.querySelectorAll('#charts g.run-0 circle').length") == 1
    assert browser.evaluate("document.querySelectorAll('#charts g.run-1 path.raw').length") == 1
    note = "Each point is the mean of 1 to 2 logged steps, by the length of its run."
    assert browser.evaluate("document.querySelector('#charts figure p').textContent").endswith(note)
    assert browser.evaluate("document.querySelector('#charts .readout').textContent") == "mean of the last tenth–1.000"
    browser.evaluate("document.querySelector('#charts svg').focus()")
    browser.press("Home")
    readout, marks = [], []
    for _ in range(3):
        browser.press("ArrowRight")
        marks.append(browser.evaluate("document.querySelectorAll('#charts .marks circle').length"))
        readout.append(browser.evaluate("document.querySelector('#charts .readout').textContent"))
    assert readout == ["step 21.0001.000", "step 3–1.000", "step 41.0001.000"]
    assert marks == [2, 1, 2]
    assert browser.complaints == []


def test_hostile_text_is_shown_as_text(browser: Chromium, make_run, tmp_path: Path):
    browser.show(write_report([hostile_run(make_run).path], tmp_path / "hostile.html"))
    assert "broken" not in browser.evaluate("document.title")
    assert browser.evaluate("document.documentElement.dataset.drawn") == "yes"
    shown = browser.evaluate("[...document.querySelectorAll('.token')].map((token) => token.textContent)")
    assert shown[1:4] == ATTACKS[:3]
    assert shown[4] == "[U+2028][U+2029] & &lt; ]]> {{ 7 * 7 }}"
    assert shown[5] == "[U+0000][U+0007][U+001B][2J[U+007F][U+0085][U+202E]right to left"
    assert browser.complaints == []


def test_odd_rollouts_are_drawn(browser: Chromium, make_run, tmp_path: Path):
    folder = make_run()
    nothing = {"tokens": [], "focus": [], "gate": [], "token_factor": [], "completion": ""}
    single = {"tokens": ["\n"], "focus": [0.5], "gate": [True], "token_factor": [1.0]}
    unshaped = rollout(1, 4, focus=None, gate=None, token_factor=None, rollout_factor=None)
    imageless = rollout(1, 2, focus=None, images=[])
    folder.write_rollouts(*handed_over([rollout(1, 0, **nothing), rollout(1, 1, **single), imageless, unshaped]))
    folder.write_rollouts(*handed_over([rollout(1, 3, focus=[None, 0.5, None, 0.6], advantage=None, rewards={})]))
    browser.show(write_report([folder.path], tmp_path / "odd.html"))
    keys = []
    for shade in (0, 1):
        browser.evaluate(f"document.querySelectorAll('#shade-choice button')[{shade}].click()")
        for entry in range(5):
            browser.evaluate(f"document.querySelectorAll('#rollout-list button')[{entry}].click()")
            browser.evaluate("document.querySelector('.token')?.focus()")
            keys.append(browser.evaluate("document.querySelector('.key').textContent"))
    assert keys[2:4] == ["No focus: the question has no image.", "focus 0.5000.600underlined passed the gate"]
    assert keys[4] == "Focus was not measured in this run."
    assert keys[9] == "No token factors: this run does not shape advantages."
    assert browser.complaints == []
