"""The page of a check, and its file."""

import re

import pytest

from tests.focus_check.made import check, gaining, samples
from tests.hostile.checks import Outline
from tests.hostile.texts import NASTY
from tests.pages.columns import unexplained_columns
from vgpo.focus_check.page import Axis, render_check, short
from vgpo.focus_check.records import FocusCheck
from vgpo.focus_check.table import check_table, verdict_text
from vgpo.text import visible


def test_the_verdict_comes_first_and_says_its_recipe() -> None:
    page = render_check(check(gaining()))
    outline = Outline(page)
    assert outline.texts_of("h2")[:2] == ["VGPO has something to gain", "Figures"]
    assert outline.texts_of("pre") == ["shaping: vgpo\nfocus_state: reading\nrollout_score: mean"]


def test_every_column_of_numbers_has_a_tooltip() -> None:
    page = render_check(check(gaining(4, strata=("a", "b", "a", "b")), column="c"))
    assert unexplained_columns(page) == []
    assert page.count('<tr><th scope="row"><span class="tip"') == 19  # rows of the table of figures


def test_it_loads_nothing_and_runs_its_own_script_only() -> None:
    page = render_check(check(gaining()))
    [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[^' ]+'(;|$)", policy)
    assert page.count("<script") == 2  # data and code
    assert not re.findall(r'(?:src|href)="', page)


def test_charts_hold_every_group_and_both_outcomes() -> None:
    elements = [name for name, _ in Outline(render_check(check(gaining(12)))).elements]
    assert elements.count("circle") == 2 * (12 + 1)  # in two states, with their mean
    assert elements.count("polyline") == elements.count("polygon") == 4


def test_a_check_without_mixed_groups_has_a_page() -> None:
    page = render_check(check(samples([[(True, [0.5]), (True, [0.2])]])))
    assert page.count("No group has right and wrong answers.") == 2
    assert "nan" not in page.lower().replace("nan,", "")


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_names_stay_text(text: str) -> None:
    plain = check(gaining(4, strata=("a", "b", "a", "b")), column="c")
    found = plain.model_copy(update={"model": text, "data": text})
    settings = found.settings.model_copy(update={"stratum_column": text, "template": text})
    strata = {
        state: [one.model_copy(update={"name": text}) for one in of_state]
        for state, of_state in found.measures.strata.items()
    }
    measures = found.measures.model_copy(update={"strata": strata})
    found = found.model_copy(update={"settings": settings, "measures": measures})
    outline = Outline(render_check(found))
    assert outline.elements == Outline(render_check(plain)).elements
    assert outline.other == []
    assert outline.texts_of("h1") == [visible(short(text))]
    assert verdict_text(found).startswith(visible(text))
    assert check_table(measures, "reading").row_count > 20


def test_the_file_is_read_back_as_it_was() -> None:
    found = check(gaining(4, strata=("a", "b", "a", "b")))
    assert FocusCheck.model_validate_json(found.model_dump_json()) == found


def test_ticks_are_round_and_within_the_axis() -> None:
    axis = Axis(-0.023, 0.023, 10, 110)
    assert [label for _, label in axis.ticks] == ["−0.02", "−0.01", "0.00", "0.01", "0.02"]
    assert axis.at(0) == 60


# What version 1 of the file holds; other programs read it.
KEYS = {
    "": "created data measures model settings verdict version vgpo",
    "settings": "blind_samples limit max_new_tokens samples seed stratum_column temperature template",
    "verdict": "advice blind compensation focus_state gain headline questions_needed reasons recipe",
    "measures": "accuracy blind counts length length_correlation mixed questions states strata",
    "measures.counts": "mixed_groups questions responses truncated without_image",
    "measures.accuracy": "count high low value",
    "measures.length": "all right wrong",
    "measures.blind": "accuracy always_right chance multiple_choice strength",
    "measures.states": "predicting reading",
    "measures.states.reading": "compensation correlation correlation_at_equal_length decay focus focus_difference "
    "late_early late_early_difference right_by_decile strength wrong_by_decile",
    "measures.states.reading.compensation": "at_full at_zero mean quartiles",
    "measures.strata.reading.0": "accuracy blind_accuracy blind_strength compensation correlation mixed_groups name "
    "questions strength",
    "measures.questions.0": "blind_correct blind_responses chance correct correlation decay focus_difference "
    "responses row stratum",
}


@pytest.mark.parametrize("place", KEYS)
def test_the_file_keeps_its_keys(place: str) -> None:
    found = check(gaining(2, strata=("a", "b"))).model_dump(mode="json")
    for part in filter(None, place.split(".")):
        found = found[int(part)] if part.isdigit() else found[part]
    assert " ".join(sorted(found)) == KEYS[place]
