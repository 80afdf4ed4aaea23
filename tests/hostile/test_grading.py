"""Answers and reference answers that hold anything: verdicts come back, in linear time, and nothing of them is run."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given

from tests.hostile.checks import check_extraction, check_grade, check_verdict, check_visible
from tests.hostile.texts import LONG, NASTY, hostile_text
from vgpo.answers import canonical_answer, compare_text
from vgpo.rewards import Grader, accuracy_reward, extract_boxed, format_reward, strip_outer_box
from vgpo.rewards.grammar import is_unsafe
from vgpo.text import visible

GOLDS = ["A", "A, C", "12", "1.5", "\\frac{1}{2}", "left", *NASTY.values()]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout=1.0) as grader:
        yield grader


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_text_is_read_as_text(text: str):
    for around in (text, f"\\boxed{{{text}}}", f"\\boxed{{{text}", f"<think>{text}</think>\\boxed{{{text}}}"):
        check_extraction(around)
        check_visible(around)
    for gold in GOLDS:
        check_verdict(text, gold)


@given(hostile_text())
def test_any_text_is_read_as_text(text: str):
    check_extraction(text)
    check_visible(text)


@given(hostile_text(4), hostile_text(4))
@example("1  1/2", "11/2")
def test_any_answer_meets_any_gold(answer: str, gold: str):
    check_verdict(answer, gold)


@given(hostile_text())
def test_the_box_that_was_written_last_is_the_one_read(text: str):
    if "\\boxed{" not in text and text.count("{") == text.count("}") == 0:
        assert extract_boxed(f"{text}\\boxed{{1}} \\boxed{{{text}}} }}}}") == text.strip()


def test_a_blank_between_digits_is_kept_however_wide():
    assert compare_text(canonical_answer("1  1/2"), canonical_answer("11/2")) is None
    assert compare_text(canonical_answer("1 \t1"), canonical_answer("11")) is None
    assert compare_text(canonical_answer("x  =  2"), canonical_answer("x=2")) is True


def test_what_is_too_long_for_algebra_is_compared_as_text():
    assert compare_text("7" * 1001, "7" * 1001) is True
    assert compare_text("12", "7" * 1001) is False
    assert compare_text("7" * 1001, "12") is False


def test_nasty_answers_end_no_worker_and_run_nothing(grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for gold in ("1.75", "x+1"):
        answers = [f"\\boxed{{{text}}}" for text in NASTY.values()]
        assert grader.grade(answers, [gold] * len(answers)) == [False] * len(answers)
    assert grader.statistics.crashes == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_golds_are_graded_or_refused_by_name(grader: Grader, text: str):
    if strip_outer_box(text):
        check_grade(grader, "\\boxed{7}", text)
    else:
        with pytest.raises(ValueError, match="row 0: the answer is empty"):
            check_grade(grader, "\\boxed{7}", text)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_megabyte_takes_seconds_at_most(text: str):
    calls = {
        "extract_boxed": lambda: extract_boxed(text),
        "strip_outer_box": lambda: strip_outer_box(text),
        "format_reward": lambda: format_reward([text, f"<think>{text}</think>{text}"]),
        "compare_text": lambda: [compare_text(text, gold) for gold in ("A", "A, C", "12")],
        "compare_text of a long gold": lambda: [compare_text(answer, text) for answer in ("A", "12")],
        "is_unsafe": lambda: is_unsafe(text),
        "accuracy_reward": lambda: accuracy_reward([text, f"\\boxed{{{text}}}"], ["A", text.strip() or "A"]),
        "visible": lambda: visible(text),
    }
    for name, call in calls.items():
        start = time.process_time()
        call()
        # About half a second; a scan that looks back for each brace would take hours.
        assert time.process_time() - start < 5.0, f"{name} took too long"
