"""The page of two evaluations in a real browser."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.texts import NASTY
from tests.report.chromium import FAINT, HIDDEN, NAMELESS, UNSAVED, Chromium
from tests.suite.evaluations import graded, oversized, task_record, write_evaluation
from vgpo.evaluation.answers import GradedAnswer
from vgpo.pages.images import image_entry
from vgpo.pages.texts import truncate
from vgpo.suite import comparison
from vgpo.suite.page import write_evaluation_page
from vgpo.text import visible


def answers_of(skill: int, number: int, **fields: str) -> list[GradedAnswer]:
    """Every `skill`-th row is wrong, every fifth of these has no box."""
    return [
        graded(
            row,
            correct=row % skill != 0,
            category="algebra" if row % 2 else "geometry",
            truncated=row % (5 * skill) == 0,
            **({"predicted": None} if row % (5 * skill) == 0 else {}),
            **fields,
        )
        for row in range(number)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    hostile = [
        graded(row, correct=False, problem=text, answer=text, category=text, completion=text, predicted=text, id=text)
        for row, text in enumerate(NASTY.values())
    ]
    folders = []
    for name, skill in (("base", 2), ("vgpo", 3)):
        mathvista = [*answers_of(skill, 30), oversized(31)]
        answers = {"mathvista": mathvista, "mathverse": answers_of(skill, 40), "counting": hostile}
        tasks = {"mathvista": task_record(32, num_asked=30, dropped=["row 30, no image"], oversized=[31])}
        folders.append(write_evaluation(folder / name, answers, tasks, checkpoint=f"runs/{name}/final").path)

    def images(benchmark: object, *args: object, shown: list[int], **options: object) -> dict:
        small, wide = (image_entry(Image.new("RGB", size, "teal")) for size in ((40, 30), (256, 120)))
        return {row: [small, None] if row % 3 == 0 else [wide] for row in shown if row % 4}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "row_images", images)
        return write_evaluation_page(folders, folder / "page.html", num_rows=150)


def choose(browser: Chromium, selector: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const one = document.querySelector('{selector}'); one.value = '{value}';"
        "one.dispatchEvent(new Event('change')); one.dispatchEvent(new Event('input')); })()"
    )


def press(browser: Chromium, label: str) -> None:
    buttons = "[...document.querySelectorAll('#verdict-choice button')]"
    browser.evaluate(f"{buttons}.find((one) => one.textContent === '{label}').click()")


def texts_of(browser: Chromium, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_everything_is_drawn_without_a_complaint(browser: Chromium, page: Path, width: int, theme: str) -> None:
    browser.show(page, width, theme=theme)
    assert browser.evaluate("document.documentElement.dataset.drawn") == "yes"
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(HIDDEN) == []
    assert len(texts_of(browser, "svg.chart")) == 2
    assert len(texts_of(browser, "svg.chart .value")) == 2 * 6 + 6  # three tasks and three averages
    assert len(texts_of(browser, ".row")) == 31 + 40 + len(NASTY)
    choose(browser, "#task-choice", "mathvista")
    browser.evaluate("document.querySelectorAll('.row details').forEach((one, i) => { one.open = i < 4; })")
    browser.keep_picture(f"evaluation-{width}-{theme}")
    assert browser.complaints == []


def test_filters_leave_the_rows_that_meet_all_of_them(browser: Chromium, page: Path) -> None:
    browser.show(page)
    assert texts_of(browser, "#count") == [f"{71 + len(NASTY)} of the {71 + len(NASTY)} rows on this page"]
    choose(browser, "#task-choice", "mathverse")
    press(browser, "Only B")
    only_b = [row for row in range(40) if row % 2 == 0 and row % 3 != 0]
    assert set(texts_of(browser, ".row .outcome")) == {"only B right"}
    assert len(texts_of(browser, ".row")) == len(only_b)
    browser.evaluate("document.querySelector('#unboxed-choice').click()")
    unboxed = [row for row in only_b if row % 10 == 0]
    assert len(texts_of(browser, ".row")) == len(unboxed)
    choose(browser, "#category-choice", "0")  # algebra: odd rows
    assert texts_of(browser, ".row") == []
    assert browser.evaluate("document.querySelector('#no-rows').checkVisibility()") is True
    choose(browser, "#category-choice", "1")
    choose(browser, "#text-choice", "WHAT IS 20")
    assert texts_of(browser, ".row .question") == ["▣ What is 20?"]
    assert browser.complaints == []


def test_a_completion_is_shown_when_it_is_opened(browser: Chromium, page: Path) -> None:
    browser.show(page)
    choose(browser, "#task-choice", "mathvista")
    choose(browser, "#text-choice", "what is 4?")
    assert texts_of(browser, ".row .completion") == ["", ""]
    browser.evaluate("document.querySelectorAll('.row summary').forEach((one) => one.click())")
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert texts_of(browser, ".row .completion") == ["So \\boxed{no}", "So \\boxed{4}"]
    assert texts_of(browser, ".row .answer p") == ["A ✗ wrong, answered no", "B ✓ correct, answered 4"]


def test_an_oversized_row_is_named_so_and_is_none_without_a_box(browser: Chromium, page: Path) -> None:
    browser.show(page)
    choose(browser, "#task-choice", "mathvista")
    choose(browser, "#text-choice", "what is 31?")
    assert texts_of(browser, ".row .answer p") == [f"{letter} ✗ wrongoversized: not asked" for letter in "AB"]
    browser.evaluate("document.querySelector('#unboxed-choice').click()")
    assert texts_of(browser, ".row") == []


@pytest.mark.parametrize(
    ("names", "outcomes"),
    [
        ("ab", ["A right more often", "never right", "right equally often", "B right more often"]),
        ("a", ["right in all samples", "wrong in all samples", "right in some samples", "wrong in all samples"]),
    ],
)
def test_rows_with_several_samples_say_who_is_right_more_often(
    browser: Chromium, tmp_path: Path, names: str, outcomes: list[str]
) -> None:
    shares = {"a": (2, 0, 1, 0), "b": (1, 0, 1, 1)}
    folders = [
        write_evaluation(
            tmp_path / name,
            {
                "counting": [
                    graded(row, correct=sample < right, sample=sample)
                    for row, right in enumerate(shares[name])
                    for sample in range(2)
                ]
            },
        ).path
        for name in names
    ]
    browser.show(write_evaluation_page(folders, tmp_path / "page.html", with_images=False))
    shown = zip(texts_of(browser, ".row .question"), texts_of(browser, ".row .outcome"), strict=True)
    assert sorted(shown) == [(f"▣ What is {row}?", outcome) for row, outcome in enumerate(outcomes)]
    labels = texts_of(browser, "#verdict-choice button")
    assert not {"Only A", "Only B", "Both right", "✓ Right"} & set(labels)
    assert len(labels) == (5 if len(names) == 2 else 4)
    assert browser.complaints == []


def test_nasty_rows_are_shown_as_they_are(browser: Chromium, page: Path) -> None:
    browser.show(page)
    choose(browser, "#task-choice", "counting")
    shown = [visible(text.replace("<image>", "▣ ")) for text in NASTY.values()]
    assert texts_of(browser, ".row .question") == shown
    assert texts_of(browser, ".row .reference b") == [visible(truncate(text, 400)) for text in NASTY.values()]
    assert browser.evaluate("document.title") == "runs/base/final · runs/vgpo/final — VGPO evaluation"
    assert browser.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_and_all_controls_have_names(browser: Chromium, page: Path, theme: str) -> None:
    browser.show(page, theme=theme)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.evaluate(FAINT) == []
    assert browser.evaluate(NAMELESS) == []


def test_charts_are_saved_as_values_and_as_images(browser: Chromium, page: Path) -> None:
    browser.show(page)
    assert browser.evaluate(UNSAVED) == []
    name, content = browser.saved("#accuracy-plot", "CSV")
    head, *rows = csv.reader(io.StringIO(content.decode()))
    assert name == "accuracy-plot.csv"
    assert head == ["task", "checkpoint", "accuracy", "low", "high"]
    assert [row[1] for row in rows[:4]] == ["A", "B", "A", "B"]
    shown = browser.evaluate("document.querySelector('.scores .number b').textContent")
    assert f"{100 * float(rows[0][2]):.1f}" == shown
    head, *rows = csv.reader(io.StringIO(browser.saved("#difference-plot", "CSV")[1].decode()))
    assert head == ["task", "difference", "low", "high"]
    assert len(rows) == browser.evaluate("document.querySelectorAll('#difference-plot .value').length")
    for figure in ("#accuracy-plot", "#difference-plot"):
        image = Image.open(io.BytesIO(browser.saved(figure, "PNG")[1]))
        height = browser.evaluate(f"document.querySelector('{figure} .chart').viewBox.baseVal.height")
        assert image.size == (3 * (460 + 24), 3 * (height + 3 * 16 + 24))  # a line for each checkpoint
    assert browser.complaints == []
