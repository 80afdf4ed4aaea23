"""Pages full of hostile text in a real browser: the same text, no request, no script but the page's own."""

from pathlib import Path

from tests.hostile.checks import set_check
from tests.hostile.texts import NASTY
from tests.report.chromium import Chromium
from tests.report.run_records import handed_over, rollout
from vgpo.data.preview import write_page
from vgpo.report import write_report
from vgpo.run import RunFolder
from vgpo.text import visible


def texts_of(browser: Chromium, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


def test_tokens_are_shown_as_they_are(browser: Chromium, tmp_path: Path):
    tokens = [text[:400] for text in NASTY.values()]
    per_token = {"focus": [0.5] * len(tokens), "gate": [True] * len(tokens), "token_factor": [1.0] * len(tokens)}
    folder = RunFolder.create(tmp_path / "run", {}, seed=0, command=[])
    everything = " ".join(tokens)[:3000]
    folder.write_rollouts(
        *handed_over([rollout(images=[], tokens=tokens, problem=everything, answer=everything, **per_token)])
    )
    browser.show(write_report([folder.path], tmp_path / "report.html"))
    assert browser.evaluate("document.title") == "run — VGPO report"
    assert texts_of(browser, ".token") == [visible(token).replace("\n", "↵\n") for token in tokens]
    assert texts_of(browser, ".reference b") == [visible(everything)]
    assert texts_of(browser, ".question") == [visible(everything.replace("<image>", "▣ "))]
    assert browser.complaints == []


def test_prompts_are_shown_as_they_are(browser: Chromium, tmp_path: Path):
    page = write_page([set_check(text) for text in NASTY.values()], tmp_path / "check.html", recipe="hostile")
    browser.show(page)
    assert browser.evaluate("document.title") == "Data check: hostile"
    assert texts_of(browser, "pre") == [visible(text) for text in NASTY.values() for _ in ("prompt", "answer")]
    assert browser.complaints == []
