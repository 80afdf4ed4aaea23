"""Text of models and datasets on pages and in files: all of it comes back, and none of it becomes an element."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.hostile.checks import (
    check_data_page,
    check_evaluation_page,
    check_run_folder,
    check_settings,
    data_page,
    write_rollouts,
)
from tests.hostile.texts import LONG, NASTY, hostile_text
from tests.pages.columns import unexplained_columns
from vgpo.report import report_data
from vgpo.run import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder.create(tmp_path_factory.mktemp("hostile") / "run", {"model": "m"}, seed=0, command=["vgpo"])


@pytest.fixture(scope="module")
def data(folder: RunFolder) -> dict:
    write_rollouts(folder, "plain")
    return report_data([folder.path])


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_text_stays_text(folder: RunFolder, data: dict, tmp_path: Path, text: str):
    check_run_folder(folder, text)
    check_settings(data, text)
    check_data_page(tmp_path / "check.html", text)
    check_evaluation_page(tmp_path, text)


def test_every_column_of_numbers_of_a_data_check_has_a_tooltip(tmp_path: Path):
    page = data_page(tmp_path / "check.html", "kind").page
    assert page.count('class="number"') >= 4
    assert unexplained_columns(page) == []


@settings(max_examples=40)
@given(text=hostile_text())
def test_any_text_stays_text(folder: RunFolder, data: dict, tmp_path: Path, text: str):
    check_run_folder(folder, text)
    check_settings(data, text)
    check_data_page(tmp_path / "check.html", text)
    check_evaluation_page(tmp_path, text)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_megabyte_comes_back_and_the_page_stays_small(folder: RunFolder, text: str):
    assert len(check_run_folder(folder, text)) < 500_000


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_an_evaluation_of_megabytes_makes_a_small_page(tmp_path: Path, text: str):
    assert len(check_evaluation_page(tmp_path, text)) < 700_000
