"""The page of a run that goes on: its pace, its failures, and what it tells a reader."""

import itertools
import json
import logging
import re
from pathlib import Path

import pytest

from tests.report.run_records import fill, handed_over, rollout
from vgpo.report import live, render, report_data
from vgpo.report.live import LiveReport
from vgpo.run import RunFolder


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def slow_drawing(monkeypatch: pytest.MonkeyPatch):
    """Make drawing take so many seconds of a clock; returns the moments at which it began."""

    def slow(clock: Clock, seconds: float) -> list[float]:
        moments: list[float] = []

        def render_slowly(data: dict) -> str:
            moments.append(clock.now)
            clock.now += seconds
            return "page"

        monkeypatch.setattr(live, "collect", lambda folders, summaries: {})
        monkeypatch.setattr(live, "render", render_slowly)
        return moments

    return slow


def embedded(folder: RunFolder) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', folder.report_path.read_text(), re.DOTALL)[1])


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 30), (0.25, 30), (0.5, 50), (12.0, 1200)])
def test_drawing_takes_a_hundredth_of_the_time_at_most(make_run, slow_drawing, seconds: float, pause: float):
    clock = Clock()
    moments = slow_drawing(clock, seconds)
    report = LiveReport(fill(make_run()), clock)
    started, steps_taken = clock.now, 0
    while clock.now < started + 4000:
        clock.now += 1.0  # a step of training
        steps_taken += 1
        report.keep_fresh()
    assert moments[0] == started + 30
    waits = [later - earlier - seconds for earlier, later in itertools.pairwise(moments)]
    assert all(pause <= wait <= pause + 1 for wait in waits)
    assert seconds * len(moments[:-1]) <= 0.01 * (clock.now - started)


def test_a_start_puts_the_first_drawing_off(make_run, slow_drawing):
    clock = Clock()
    moments = slow_drawing(clock, 0.0)
    report = LiveReport(make_run(), clock)
    clock.now += 29
    report.start()
    clock.now += 29
    report.keep_fresh()
    assert moments == []
    clock.now += 1
    report.keep_fresh()
    assert len(moments) == 1


def test_a_live_page_is_the_page_and_says_that_it_is_not_the_last(make_run):
    folder = fill(make_run())
    report = LiveReport(folder)
    report.draw(live=True)
    drawn = embedded(folder)
    assert drawn["live"]["every"] == 30
    assert drawn["live"]["drawn"].endswith("+00:00")
    assert {**drawn, "live": None} == report_data([folder.path])
    assert 'id="live"' in folder.report_path.read_text()
    report.draw(live=False)
    assert folder.report_path.read_text() == render(report_data([folder.path]))
    assert 'id="live"' not in folder.report_path.read_text()


def test_each_rollout_is_read_once(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = fill(make_run(), 3)
    report = LiveReport(folder)
    report.draw(live=True)
    folder.write_rollouts(*handed_over([rollout(4, 8)]))
    taken_in = []
    monkeypatch.setattr(live.RolloutSummary, "add", lambda summary, record: taken_in.append(record.step))
    report.draw(live=True)
    assert taken_in == [4]


def test_rollouts_that_a_resume_cut_off_are_forgotten(make_run):
    folder = fill(make_run(), 4)
    report = LiveReport(folder)
    report.draw(live=True)
    folder.rollouts.cut_back(2)
    report.draw(live=False)
    assert embedded(folder) == report_data([folder.path])
    assert embedded(folder)["runs"][0]["num_rollouts"] == 6


def test_a_drawing_that_fails_is_told_once_and_ends_nothing(
    make_run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder, broken = fill(make_run()), True

    def fail_while_broken(data: dict) -> str:
        if broken:
            raise ValueError("no page")
        return "page"

    monkeypatch.setattr(live, "render", fail_while_broken)
    report = LiveReport(folder)
    folder.report_path.write_text("the page before")
    for _ in range(3):
        report.draw(live=True)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{folder.report_path} could not be drawn; training is unharmed."
    assert str(record.exc_info[1]) == "no page"
    assert folder.report_path.read_text() == "the page before"
    broken = False
    report.draw(live=True)
    assert folder.report_path.read_text() == "page"
    broken = True
    report.draw(live=True)
    assert len(caplog.records) == 2


def test_a_disk_that_is_full_leaves_the_page_before(make_run, monkeypatch: pytest.MonkeyPatch, caplog):
    folder = fill(make_run())
    report = LiveReport(folder)
    report.draw(live=True)
    before = folder.report_path.read_bytes()
    fill(folder, 2)

    def refuse(path: Path, data: bytes, append: bool = False) -> None:
        with path.open("ab") as file:
            file.write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vgpo.run.storage.write_all", refuse)
    report.draw(live=True)
    assert folder.report_path.read_bytes() == before
    assert "No space left on device" in str(caplog.records[0].exc_info[1])
    assert not list(folder.path.glob(".*partial"))
