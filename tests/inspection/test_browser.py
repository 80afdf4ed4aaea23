"""The page of an inspection in a real browser."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hostile.texts import NASTY
from tests.inspection import made
from tests.report.chromium import FAINT, NAMELESS, UNSAVED, Chromium
from vgpo.inspection.maps import Fineness, read_map
from vgpo.inspection.page import render_inspection, short
from vgpo.text import visible

# A map is unpacked beside the page's script: wait until every cell has its colour.
PAINTED = """new Promise((done) => {
  const look = () => document.documentElement.dataset.drawn && !document.querySelector('.cell[fill="none"]')
    ? done(true) : setTimeout(look, 2);
  look();
})"""


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return made.odd()


@pytest.fixture(scope="module")
def page(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(data, tmp_path_factory.mktemp("page"))


def write(data: dict[str, Any], folder: Path) -> Path:
    path = folder / "inspection.html"
    path.write_text(render_inspection(data), encoding="utf-8")
    return path


def painted(browser: Chromium) -> None:
    reply = browser.call("Runtime.evaluate", expression=PAINTED, awaitPromise=True, returnByValue=True)
    assert reply["result"].get("value") is True, reply


def show(browser: Chromium, page: Path, **look: Any) -> None:
    browser.show(page, **look)
    painted(browser)


def open_question(browser: Chromium, place: int) -> None:
    browser.evaluate("document.querySelector('#order-choice').value = 'data'")
    fire(browser, "#order-choice", "change")
    browser.evaluate(f"document.querySelectorAll('#question-list button')[{place}].click()")
    painted(browser)


def fire(browser: Chromium, selector: str, event: str) -> None:
    browser.evaluate(f"document.querySelector('{selector}').dispatchEvent(new Event('{event}'))")


def press_button(browser: Chromium, group: str, label: str) -> None:
    buttons = f"[...document.querySelectorAll('#{group} button')]"
    browser.evaluate(f"{buttons}.find((one) => one.textContent === '{label}').click()")
    painted(browser)


def texts_of(browser: Chromium, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


def fills(browser: Chromium) -> list[str]:
    """Of the first response's cells."""
    cells = "document.querySelector('.pane').querySelectorAll('.cell')"
    return browser.evaluate(f"[...{cells}].map((cell) => cell.getAttribute('fill'))")


def lightness(fill: str) -> float:
    return float(fill.removeprefix("oklch(").split()[0])


def choose_token(browser: Chromium, place: int) -> None:
    browser.evaluate(f"document.querySelector('.pane').querySelectorAll('.token')[{place}].click()")
    painted(browser)


def expected_map(question: dict[str, Any], rollout: dict[str, Any]) -> np.ndarray:
    patches = rollout["patches"]
    values = patches["low"] + (patches["high"] - patches["low"]) * read_map(patches)
    return values[:, [token for grid in question["grids"] for token in grid["tokens"]]]


def shares(values: np.ndarray, low: float, high: float) -> list[float]:
    """The lightness of each value's colour."""
    return [pytest.approx(0.22 + 0.7 * (value - low) / (high - low), abs=6e-4) for value in values]


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_everything_is_drawn_without_a_complaint(browser: Chromium, page: Path, width: int, theme: str):
    show(browser, page, width=width, theme=theme)
    for place in range(7):
        open_question(browser, place)
        for measure in range(6):
            browser.evaluate(f"document.querySelectorAll('#measure-choice button')[{measure}].click()")
        painted(browser)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
    counts = {"#focus-curves .chart": 2, "#ratio-plots .chart": 2, "#attention-curves .chart": 2, ".list button": 7}
    for selector, count in counts.items():
        assert len(texts_of(browser, selector)) == count, selector
    browser.keep_picture(f"inspection-{width}-{theme}")
    assert browser.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_and_all_controls_have_names(browser: Chromium, page: Path, theme: str):
    show(browser, page, theme=theme)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for place in (0, 3, 4):
        open_question(browser, place)
        assert browser.evaluate(FAINT) == []
        assert browser.evaluate(NAMELESS) == []


def test_a_token_changes_the_map(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    open_question(browser, 3)
    question = data["questions"][3]
    values = expected_map(question, question["rollouts"][0])
    for token in (2, 7):
        choose_token(browser, token)
        row = values[token]
        assert list(map(lightness, fills(browser))) == shares(row, row.min(), row.max())
        labels = "document.querySelector('.pane').querySelectorAll('.overlay text')"
        assert browser.evaluate(f"[...{labels}].map((one) => one.textContent)") == [
            f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in row
        ]
        place = f"row {row.argmax() // 3 + 1}, column {row.argmax() % 3 + 1}"
        number = f"{row.max():.3f}".replace("-", "\N{MINUS SIGN}")
        assert texts_of(browser, ".patch-readout")[0] == f"highest: {place}: {number}"
    press_button(browser, "scale-choice", "Response’s range")
    assert list(map(lightness, fills(browser))) == shares(values[7], values.min(), values.max())
    press_button(browser, "map-choice", "Whole response")
    mean = values.mean(axis=0)
    assert list(map(lightness, fills(browser))) == shares(mean, mean.min(), mean.max())


def test_numbers_of_a_token_are_the_files(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    open_question(browser, 3)
    rollout = data["questions"][3]["rollouts"][0]
    browser.evaluate("document.querySelector('.token').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    head, *numbers = texts_of(browser, ".pane:first-child .token-readout > p, .pane:first-child .token-readout dd")
    gate = "gate passed" if rollout["gate"][2] else "gate not passed"
    assert head == f"token 3 of 12 {rollout['tokens'][2]} · {gate}"
    wanted = [rollout[name][2] for name in ("similarity", "focus", "weight", "token_factor", "advantage")]
    assert [float(number.replace("\N{MINUS SIGN}", "-")) for number in numbers[:5]] == pytest.approx(wanted, abs=6e-4)
    attention = [f"{rollout['attention'][source][2]:.2f}" for source in ("image", "question", "generated")]
    assert numbers[5] == " / ".join(attention)
    gated = "[...document.querySelector('.pane').querySelectorAll('.token')].map((t) => t.classList.contains('gated'))"
    assert browser.evaluate(gated) == rollout["gate"]


def test_pointing_looks_and_choosing_stays(browser: Chromium, page: Path):
    show(browser, page)
    open_question(browser, 3)
    choose_token(browser, 1)
    browser.evaluate("document.querySelector('.pane .tokens').scrollIntoView({ block: 'center' })")
    box = "document.querySelectorAll('.pane .token')[4].getBoundingClientRect()"
    x, y, width, height = browser.evaluate(f"(() => {{ const b = {box}; return [b.x, b.y, b.width, b.height]; }})()")
    readout = "document.querySelector('.token-readout p').textContent"
    browser.point_at(x + width / 2, y + height / 2)
    assert browser.evaluate(readout).startswith("token 5 of 12")
    browser.point_at(5, 5)
    assert browser.evaluate(readout).startswith("token 2 of 12")


@pytest.mark.parametrize(
    ("label", "name", "centre"),
    [
        ("Similarity", "similarity", None),
        ("w", "weight", None),
        ("Token factor", "token_factor", 1.0),
        ("Advantage", "advantage", 0.0),
    ],
)
def test_shades_follow_the_switch(
    browser: Chromium, data: dict[str, Any], page: Path, label: str, name: str, centre: float | None
):
    show(browser, page)
    open_question(browser, 3)
    press_button(browser, "measure-choice", label)
    values = np.array(data["questions"][3]["rollouts"][0][name])
    tokens = "[...document.querySelector('.pane').querySelectorAll('.token')]"
    shown = browser.evaluate(f"{tokens}.map((one) => Number(one.style.getPropertyValue('--value')))")
    if centre is None:
        assert shown == pytest.approx((values - values.min()) / np.ptp(values), abs=2e-3)
        return
    offsets = values - centre
    assert shown == pytest.approx(abs(offsets) / abs(offsets).max(), abs=2e-3)
    below = browser.evaluate(f"{tokens}.map((one) => one.classList.contains('below'))")
    assert below == [bool(offset < 0) for offset in offsets]


def test_cells_are_read_by_key(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    open_question(browser, 1)
    question = data["questions"][1]
    assert len(fills(browser)) == 12
    choose_token(browser, 0)
    values = expected_map(question, question["rollouts"][0])[0]
    browser.evaluate("document.querySelectorAll('.pane .overlay')[1].focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):  # the first press enters the grid
        browser.press(key)
    number = f"{values[6 + 3]:.3f}".replace("-", "\N{MINUS SIGN}")
    assert texts_of(browser, ".patch-readout")[0] == f"image 2, row 2, column 2: {number}"


def test_digits_are_those_that_the_levels_tell_apart(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = np.linspace(-0.3, 0.3, 72).reshape(12, 6)
    question = made.question(0, [made.rollout(0, patches=made.pack(values))])
    for levels, digits in ((256, 3), (32, 2), (4, 1)):  # steps of 0.0024, 0.019 and 0.2
        monkeypatch.setattr("vgpo.inspection.maps.FINENESSES", (Fineness(levels, 1),))
        show(browser, write(made.inspection([question], ("one",)), tmp_path))
        choose_token(browser, 11)
        assert texts_of(browser, ".patch-readout") == [f"highest: row 2, column 3: {0.3:.{digits}f}"]
        assert texts_of(browser, ".overlay text")[-1] == f"{0.3:.{min(2, digits)}f}"


def test_of_cells_in_one_level_the_highest_is_framed(browser: Chromium, tmp_path: Path):
    values = np.zeros((3, 6))
    values[0] = [-1, 1, 0, 0, 0, 0]
    values[1, 4], values[2, 3] = 1e-4, 1e-4
    question = made.question(0, [made.rollout(0, 3, patches=made.pack(values))])
    show(browser, write(made.inspection([question], ("one",)), tmp_path))
    for token, place in ((1, "row 2, column 2"), (2, "row 2, column 1")):
        choose_token(browser, token)
        assert texts_of(browser, ".patch-readout")[0].startswith(f"highest: {place}: ")


def test_cells_in_the_padding_stay_within_the_picture(browser: Chromium, tmp_path: Path):
    padded = made.grid(box=[-0.056, -0.25, 1.056, 1.25])
    show(browser, write(made.inspection([made.question(0, [made.rollout(0)], grids=[padded])], ("one",)), tmp_path))
    places = "[...document.querySelectorAll('.cell')].map((one) => ['x', 'y', 'width', 'height']" + (
        ".map((name) => Number(one.getAttribute(name))))"
    )
    x, y, width, height = np.array(browser.evaluate(places)).T
    assert (x.min(), y.min()) == (0, 0)
    assert ((x + width).max(), (y + height).max()) == pytest.approx((96, 64))
    assert (width > 0).all()


def test_tokens_without_a_number_are_drawn(browser: Chromium, tmp_path: Path):
    holes = {name: [None, *made.rollout()[name][1:]] for name in ("similarity", "focus", "weight")}
    similarity = [None, -0.5, -0.2, *[-0.4] * 9]
    none = {"token_factor": [None] * 12, "advantage": [None] * 12, "patches": None, "rollout_factor": None}
    rollout = made.rollout(0, **{**holes, **none, "similarity": similarity})
    show(browser, write(made.inspection([made.question(0, [rollout])], ("one",)), tmp_path))
    assert texts_of(browser, ".token-readout p")[0].startswith("token 3 of 12")  # opened at the highest
    browser.evaluate("document.querySelectorAll('.token')[0].click()")
    assert texts_of(browser, ".token-readout dd")[:5] == ["–"] * 5
    for label in ("ρ", "w", "Token factor", "Advantage"):
        press_button(browser, "measure-choice", label)
    assert browser.complaints == []


def test_tiles_and_the_whole_are_chosen(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    open_question(browser, 0)
    question = data["questions"][0]
    choose_token(browser, 0)
    values = expected_map(question, question["rollouts"][0])[0]
    boxes = "[...document.querySelector('.pane').querySelectorAll('.cell')].map((one) => one.getAttribute('x'))"
    assert texts_of(browser, ".pane:first-child select option") == ["all tiles", "tile 1", "tile 2", "whole"]
    assert browser.evaluate(boxes) == ["0", "24", "0", "24", "48", "72", "48", "72"]
    assert list(map(lightness, fills(browser))) == shares(values[:8], values.min(), values.max())
    browser.evaluate("document.querySelector('.pane select').value = 3")
    fire(browser, ".pane select", "change")
    assert browser.evaluate(boxes) == ["0", "48", "0", "48"]
    assert list(map(lightness, fills(browser))) == shares(values[8:], values.min(), values.max())


def test_coarser_maps_lie_where_their_cells_lie(browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vgpo.inspection.maps.FINENESSES", (Fineness(32, 2),))
    question = made.question(0, [made.rollout(0, 4, 15)], grids=[made.grid(rows=3, columns=5)])
    show(browser, write(made.inspection([question], ("one",)), tmp_path))
    places = "[...document.querySelectorAll('.cell')].map((one) => ['x', 'width'].map((a) => +one.getAttribute(a)))"
    found = np.array(browser.evaluate(places))
    assert found[:3] == pytest.approx(np.array([[0, 38.4], [38.4, 38.4], [76.8, 19.2]]))  # of 96 pixels, 5 columns
    assert len(found) == 6


def test_questions_are_filtered(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    questions = data["questions"]

    def rows() -> list[str]:
        return [about.split()[1] for about in texts_of(browser, "#question-list .facts:last-child")]

    def expect(wanted) -> None:
        assert sorted(rows()) == sorted(str(one["row"]) for one in questions if any(map(wanted, one["rollouts"])))
        assert texts_of(browser, "#count") == [f"{len(rows())} of 7 questions"]

    press_button(browser, "outcome-choice", "✗ Wrong")
    expect(lambda rollout: not rollout["correct"])
    browser.evaluate("document.querySelector('#model-choice').value = 0")
    fire(browser, "#model-choice", "change")
    expect(lambda rollout: not rollout["correct"] and rollout["model"] == 0)
    press_button(browser, "outcome-choice", "All")
    browser.evaluate("document.querySelector('#ratio-low').value = '1'")
    fire(browser, "#ratio-low", "input")
    expect(lambda rollout: rollout["model"] == 0 and (rollout["late_early_ratio"] or 0) >= 1)
    browser.evaluate("document.querySelector('#ratio-low').value = ''")
    fire(browser, "#ratio-low", "input")
    for text, found in (("1 + 1", ["2"]), ("no such text", [])):
        browser.evaluate(f"document.querySelector('#text-choice').value = '{text}'")
        fire(browser, "#text-choice", "input")
        assert rows() == found
    assert texts_of(browser, "#question") == ["No question to show."]
    browser.evaluate("document.querySelector('#text-choice').value = ''")
    fire(browser, "#text-choice", "input")
    assert texts_of(browser, "#kind-choice option") == ["All kinds", "count", "tiles"]
    browser.evaluate("document.querySelector('#kind-choice').value = 1")
    fire(browser, "#kind-choice", "change")
    assert rows() == ["3"]
    assert browser.complaints == []


def test_models_stand_side_by_side_sorted_by_difference(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    first = browser.evaluate("document.querySelector('#question .reference').textContent")
    differing = [one["row"] for one in data["questions"] if len({r["correct"] for r in one["rollouts"]}) == 2]
    assert int(first.rsplit(" ", 1)[1]) in differing
    assert texts_of(browser, ".pane h3") == ["start", "trained"]
    lefts = browser.evaluate("[...document.querySelectorAll('.pane')].map((one) => one.getBoundingClientRect().left)")
    assert lefts[0] < lefts[1]


def test_the_image_is_beside_its_overlay_without_shades(browser: Chromium, page: Path):
    show(browser, page)
    open_question(browser, 3)
    pictures = "[...document.querySelector('.pane').querySelectorAll('.pair .image-box')]"
    assert browser.evaluate(f"{pictures}.map((one) => one.querySelectorAll('.cell').length)") == [0, 6]
    assert browser.evaluate(f"{pictures}.map((one) => getComputedStyle(one.firstChild).filter)") == [
        "none", "grayscale(1)"
    ]  # fmt: skip
    assert browser.evaluate(f"{pictures}.map((one) => one.firstChild.alt)") == ["Image 1 of the question", ""]
    assert browser.evaluate(f"{pictures}.map((one) => one.firstChild.naturalWidth)") == [96, 96]


def test_samples_are_chosen(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    open_question(browser, 3)
    browser.evaluate("document.querySelectorAll('.pane .choices button')[2].click()")
    painted(browser)
    rollout = data["questions"][3]["rollouts"][2]
    assert rollout["sample"] == 2
    tokens = browser.evaluate(
        "[...document.querySelector('.pane').querySelectorAll('.token')].map((one) => one.textContent)"
    )
    assert tokens == [token.replace("\n", "↵\n") for token in rollout["tokens"]]
    assert browser.evaluate("document.activeElement.textContent").endswith("3")
    press_button(browser, "measure-choice", "w")  # and the sample stays
    assert [text[-1] for text in texts_of(browser, ".pane .choices [aria-pressed=true]")] == ["3", "1"]


def test_answers_without_the_picture(browser: Chromium, data: dict[str, Any], page: Path):
    show(browser, page)
    shown = "[...document.querySelectorAll('#answers tbody tr')].filter((row) => row.checkVisibility()).length"
    asked = [one for question in data["questions"] for one in question["rollouts"] if one["without"]]
    changed = [
        one
        for one in asked
        if {again["predicted"] for again in one["without"].values() if again} != {one["predicted"]}
    ]
    assert len(changed) < len(asked)
    assert browser.evaluate(shown) == len(changed)
    browser.evaluate("document.querySelector('#changed-only').click()")
    assert browser.evaluate(shown) == len(asked)
    browser.evaluate("document.querySelector('#answers button[data-question=\"4\"]').click()")
    painted(browser)
    assert texts_of(browser, "#question > .reference") == ["Expected 2 · row 5"]


def test_an_answer_opens_its_own_sample(browser: Chromium, data: dict[str, Any], page: Path, tmp_path: Path):
    row = 'document.querySelector(\'#answers button[data-question="3"][data-model="1"][data-sample="2"]\')'
    pressed = ".pane .choices [aria-pressed=true]"
    show(browser, page)
    assert texts_of(browser, "#answers th")[:3] == ["Row", "Model", "Sample"]
    assert browser.evaluate(f"{row}.closest('tr').children[2].textContent") == "3"
    browser.evaluate(f"{row}.click()")
    painted(browser)
    assert [text[-1] for text in texts_of(browser, pressed)] == ["1", "3"]
    press_button(browser, "measure-choice", "w")
    assert [text[-1] for text in texts_of(browser, pressed)] == ["1", "3"]  # and stays
    open_question(browser, 3)
    assert [text[-1] for text in texts_of(browser, pressed)] == ["1", "1"]
    one = made.inspection([made.question(0, [made.rollout(0, sample=n, seed=n) for n in range(3)])], ("one",))
    show(browser, write(one, tmp_path))
    assert texts_of(browser, "#answers th")[:2] == ["Row", "Sample"]
    browser.evaluate("document.querySelector('#answers button[data-sample=\"1\"]').click()")
    painted(browser)
    assert [text[-1] for text in texts_of(browser, pressed)] == ["2"]


def test_hostile_text_is_shown_as_text(browser: Chromium, tmp_path: Path):
    tokens = [text[:400] for text in NASTY.values()]
    everything = " ".join(tokens)[:3000]
    rollout = made.rollout(0, len(tokens), tokens=tokens, predicted=everything)
    tiles = [made.grid(name=text) for text in tokens[:10]]
    question = made.question(0, [rollout], problem=everything, answer=everything, kind=everything, grids=tiles)
    show(browser, write(made.inspection([question], (NASTY["script"],)), tmp_path))
    assert "broken" not in browser.evaluate("document.title").split("—")[1]
    assert texts_of(browser, ".token") == [visible(token).replace("\n", "↵\n") for token in tokens]
    assert texts_of(browser, "#question > .reference b") == [visible(everything)]
    assert texts_of(browser, "#question > .question") == [visible(everything.replace("<image>", "▣ "))]
    assert texts_of(browser, ".pane h3") == [visible(NASTY["script"])]
    assert texts_of(browser, ".pane select option")[1:] == [visible(short(token)) for token in tokens[:10]]
    assert browser.complaints == []


def test_dots_are_saved_as_values(browser: Chromium, page: Path, data: dict[str, Any]) -> None:
    show(browser, page)
    assert browser.evaluate(UNSAVED) == []
    head, *rows = csv.reader(io.StringIO(browser.saved("#ratio-plots", "CSV")[1].decode()))
    assert head == ["outcome", "late / early"]
    ratios = [
        one["late_early_ratio"] for question in data["questions"] for one in question["rollouts"] if one["model"] == 0
    ]
    assert sorted(float(row[1]) for row in rows) == pytest.approx(
        sorted(one for one in ratios if one is not None), abs=1e-4
    )
    image = Image.open(io.BytesIO(browser.saved("#ratio-plots", "PNG")[1]))
    assert image.size == (3 * (340 + 24), 3 * (166 + 16 + 24))
