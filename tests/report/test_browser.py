"""The page in a real browser."""

import math
import re
from pathlib import Path

import pytest

from tests.report.chromium import Chromium
from tests.report.run_records import ATTACKS, answers, evaluation, fill, handed_over, hostile_run, rollout
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
    assert browser.evaluate("document.querySelectorAll('#group .card').length") == 3
    assert browser.evaluate("document.querySelector('#group img').naturalWidth") == 20
    assert browser.evaluate("document.querySelectorAll('#questions .row').length") == 6
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
    assert browser.evaluate(spoken) == ["0", "0.25", "\u22123.0e\u22125", "0", "1200", "–"]


def test_tokens_answer_to_keys_and_pointer(browser: Chromium, page: Path):
    browser.show(page)
    readout = "document.querySelector('.token-readout').textContent"
    assert browser.evaluate("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 3
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
    assert browser.evaluate("document.querySelectorAll('.token.gated').length") == 3  # one in each rollout


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
    assert browser.evaluate("document.querySelector('#group .card header').textContent") == "rollout 1not graded"
    for number in (1, 2):
        browser.evaluate(f"document.querySelectorAll('#outcome-choice button')[{number}].click()")
        assert browser.evaluate("document.querySelector('#group .cards').textContent") == "None in this group."
    assert browser.complaints == []


def test_shades_follow_the_switch(browser: Chromium, page: Path):
    browser.show(page)
    values = "[...document.querySelectorAll('.token')].map((t) => Number(t.style.getPropertyValue('--value')))"
    assert browser.evaluate(values) == [0.5, 0, 1, 0.5] * 3
    browser.evaluate("document.querySelectorAll('#shade-choice button')[1].click()")
    assert browser.evaluate(values) == [0, 1, 1, 0] * 3
    assert browser.evaluate("document.querySelectorAll('.token.below').length") == 3


def test_rollouts_of_a_group_are_filtered(browser: Chromium, page: Path):
    browser.show(page)
    browser.evaluate("document.querySelectorAll('#outcome-choice button')[2].click()")
    heads = "[...document.querySelectorAll('#group .card header')].map((head) => head.textContent)"
    assert browser.evaluate(heads) == ["rollout 3✗ wrong"]
    assert "accuracy_reward0.00" in browser.evaluate("document.querySelector('.numbers').textContent")


def test_groups_are_chosen_by_step_and_by_text(browser: Chromium, make_run, tmp_path: Path):
    folder = fill(make_run(), 3)
    folder.write_rollouts(*handed_over([rollout(4, 9, 0.0, problem="Which COLOUR is it?", answer="red")]))
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    shown = "[...['step-label', 'group-count']].map((id) => document.getElementById(id).textContent)"
    enter = "(() => {{ const one = document.getElementById('{}'); one.value = '{}'; {} }})()"
    event = "one.dispatchEvent(new Event('input'));"
    assert browser.evaluate(shown) == ["step 4, group 9: 0 of 1 correct", "4 of 4 groups"]
    browser.evaluate(enter.format("step-choice", 1, event))
    assert browser.evaluate(shown)[0] == "step 2, group 4: 2 of 3 correct"
    assert browser.evaluate("document.querySelectorAll('#group .card').length") == 3
    browser.evaluate(enter.format("text-choice", "colour", event))
    assert browser.evaluate(shown) == ["step 4, group 9: 0 of 1 correct", "1 of 4 groups"]
    assert browser.evaluate("document.getElementById('step-choice').disabled") is True
    browser.evaluate(enter.format("text-choice", "no such text", event))
    assert browser.evaluate(shown) == ["–", "0 of 4 groups"]
    assert browser.evaluate("document.getElementById('group').textContent") == "No group matches."
    assert browser.complaints == []


def test_metrics_without_a_chart_are_drawn_on_demand(browser: Chromium, page: Path):
    browser.show(page)
    names = "[...document.querySelectorAll('#metric-list button')].map((one) => one.textContent)"
    assert browser.evaluate(names) == ["epoch", "reward", "rewards/accuracy_reward/mean", "time"]
    search = "document.getElementById('metric-search')"
    browser.evaluate(f"{search}.value = 'REW acc'; {search}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(names) == ["rewards/accuracy_reward/mean"]
    assert browser.evaluate("document.getElementById('metric-count').textContent") == "1 of 4 metrics"
    count = "document.querySelectorAll('#metric-charts svg.chart').length"
    browser.evaluate("document.querySelector('#metric-list button').click()")
    assert browser.evaluate(f"[{count}, drawnCharts.size]") == [1, 4]
    assert browser.evaluate("document.querySelector('#metric-charts .readout').textContent").endswith("2.9002.900")
    browser.evaluate("document.querySelector('#metric-charts [aria-label^=Remove]').click()")
    assert browser.evaluate(f"[{count}, drawnCharts.size]") == [0, 3]
    assert browser.evaluate("document.querySelector('#metric-list button').ariaPressed") == "false"
    assert browser.complaints == []


def test_held_out_questions_are_browsed(browser: Chromium, make_run, tmp_path: Path):
    folder = fill(make_run())
    before, after = evaluation(0.5, 0.4, 0.6), evaluation(0.5, 0.4, 0.6)
    before["answers"] = answers([True, False, True, *[False] * 9])
    after["answers"] = answers([True, True, False, *[False] * 9], truncated=True)
    folder.write_evaluation({"before": before, "after": after})
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    facts = "[...document.querySelectorAll('#questions .facts')].map((one) => one.textContent)"
    buttons = "document.querySelectorAll('#held-out-outcome button')"
    labels = f"[...{buttons}].map((one) => one.textContent)"
    assert browser.evaluate(labels) == ["All", "Fixed 1", "Broken 1", "Wrong 9", "Right 1"]
    assert browser.evaluate(facts)[:2] == [
        "question 2wrong before, right after",
        "question 3right before, wrong after",
    ]
    assert (
        browser.evaluate("document.getElementById('held-out-count').textContent") == "12 questions, the first 6 shown"
    )
    browser.evaluate("document.getElementById('held-out-more').click()")
    assert len(browser.evaluate(facts)) == 12
    assert browser.evaluate("document.getElementById('held-out-more').hidden") is True
    browser.evaluate("document.querySelectorAll('#held-out-outcome button')[2].click()")
    assert browser.evaluate(facts) == ["question 3right before, wrong after"]
    given = "[...document.querySelectorAll('#questions .answer > p')].map((one) => one.textContent)"
    assert browser.evaluate(given) == [
        "before training: ✓ correct, answered 2", "after training: ✗ wrong, answered nocut off"
    ]  # fmt: skip
    browser.evaluate("document.querySelector('#questions details').open = true")
    told = "new Promise((done) => setTimeout(() => done(document.querySelector('.completion').textContent), 50))"
    assert browser.evaluate(told) == "So \\boxed{2}"
    text = "document.getElementById('held-out-text')"
    browser.evaluate(f"{text}.value = 'is 11?'; {text}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(facts) == []
    browser.evaluate("document.querySelector('#held-out-outcome button').click()")
    assert browser.evaluate(facts) == ["question 12wrong before and after"]
    assert browser.complaints == []


def test_rows_of_tables_are_stacked_on_a_phone(browser: Chromium, page: Path):
    browser.show(page, 390)
    cells = "[...document.querySelectorAll('#result ~ .scroll tbody tr:first-child td')]"
    labels = browser.evaluate(f"{cells}.map((cell) => cell.dataset.label)")
    assert labels[:4] == ["Before, %", "After, %", "Change, points", "Questions"]
    assert browser.evaluate(f"{cells}.map((cell) => getComputedStyle(cell).display)[0]") == "block"
    wide = "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert browser.evaluate(wide) == 0


def test_gaps_and_means_are_told(browser: Chromium, make_run, tmp_path: Path):
    runs = [make_run("short"), make_run("long")]
    for folder, num_steps in zip(runs, (8, 800), strict=True):
        values = [math.nan if step in (3, 5, 8, 401, 402) else 1.0 for step in range(1, num_steps + 1)]
        lines = [{"step": step, "entropy": value} for step, value in enumerate(values, start=1)]
        append_records(folder.metrics_path, lines)
    browser.show(write_report([folder.path for folder in runs], tmp_path / "gaps.html"))
    drawn = "document.querySelector('#charts .run-0 .run-line').getAttribute('d')"
    assert re.sub("[0-9. ]+", "", browser.evaluate(drawn)) == "MLMML"  # 1 2, 4, 6 7
    assert browser.evaluate(drawn).count(" 98.0") == 5  # in the middle of the height: a gap is not 0
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
    unshaped = rollout(5, 4, focus=None, gate=None, token_factor=None, rollout_factor=None)
    imageless = rollout(3, 2, focus=None, images=[])
    holes = rollout(4, 3, focus=[None, 0.5, None, 0.6], advantage=None, rewards={})
    folder.write_rollouts(
        *handed_over([rollout(1, 0, **nothing), rollout(2, 1, **single), imageless, holes, unshaped])
    )
    browser.show(write_report([folder.path], tmp_path / "odd.html"))
    keys = []
    for shade in (0, 1):
        browser.evaluate(f"document.querySelectorAll('#shade-choice button')[{shade}].click()")
        for entry in range(5):
            browser.evaluate(f"showRollouts({{ place: {entry} }})")
            browser.evaluate("document.querySelector('.token')?.focus()")
            keys.append(browser.evaluate("document.querySelector('.key').textContent"))
    assert keys[2:4] == ["No focus: the question has no image.", "focus 0.5000.600underlined passed the gate"]
    assert keys[4] == "Focus was not measured in this run."
    assert keys[9] == "No token factors: this run does not shape advantages."
    assert browser.complaints == []
