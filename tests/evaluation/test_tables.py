"""Tables of scores: every row names what it is, and an average that is not the paper's is never shown as it."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.evaluation.test_scores import graded, scores_of
from vgpo.evaluation.benchmarks import BENCHMARKS, SUITES
from vgpo.evaluation.scores import SuiteScores, suite_scores, task_scores
from vgpo.evaluation.tables import CSV_FIELDS, percent, suite_csv, suite_record, suite_table

PROTOCOL = "papo-avg@8"


def printed(scores: SuiteScores, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(suite_table(scores, PROTOCOL))
    return console.export_text()


@pytest.fixture(scope="module")
def some() -> SuiteScores:
    tasks = [scores_of("wemath", 5, 8, num_rows=10, dropped=1, oversized=1), scores_of("counting", 3, 4, num_rows=200)]
    answers = [*graded(0, True, category="a\x1b[31m", truncated=True), *graded(1, False, predicted=None)]
    return suite_scores(
        [*tasks, task_scores(replace(BENCHMARKS["dynamath"], num_rows=2), answers, num_rows=2, num_asked=2)]
    )


def test_the_table_shows_every_count(some: SuiteScores) -> None:
    lines = {line.split("  ")[0].strip(): line.split() for line in printed(some).splitlines() if line.strip()}
    # 5 of 10: Wilson's interval is 23.7 to 76.3; sqrt(0.25 / 9) = 16.7 %
    assert lines["We-Math"] == ["We-Math", "50.0", "23.7", "to", "76.3", "16.7", "10", "1", "1", "0", "0"]
    assert lines["DynaMath"][-5:] == ["2", "0", "0", "1", "1"]


def test_the_table_names_the_protocol_and_what_is_partial(some: SuiteScores) -> None:
    text = printed(some)
    assert text.splitlines()[0].strip() == "Protocol: papo-avg@8"
    lines = {line.split("  ")[0].strip(): line.split()[-1] for line in text.splitlines() if line.strip()}
    assert " 4/200 " in next(line for line in text.splitlines() if "Counting" in line)
    averages = {name: number for name, number in lines.items() if "partial" in name}
    assert averages == {"Avg-Math, partial": "1/6", "Avg-Vision, partial": "1/4", "Overall, partial": "2/10"}


def test_an_average_of_limited_tasks_is_called_partial() -> None:
    scores = suite_scores(scores_of(name, 1, 2, num_rows=3) for name in SUITES["vgpo-vision"])
    assert [line.split() for line in printed(scores).splitlines() if "Avg-Vision" in line] == [
        ["Avg-Vision,", "partial", "50.0", "25.0", "4"]  # sqrt(4 * 0.5^2) / 4
    ]


def test_a_complete_table_fits_into_80_columns() -> None:
    text = printed(suite_scores(scores_of(name, 1234, 2000) for name in SUITES["vgpo"]))
    # The title, a heading of three lines, two groups, ten tasks and three averages.
    assert len([line for line in text.splitlines() if line.strip()]) == 19
    assert "partial" not in text
    assert "/" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    columns = {line.rindex(" ") for line in text.splitlines() if line.strip().endswith(" 0")}
    assert len(columns) == 1  # aligned


def test_the_record_is_json_and_names_the_protocol_in_every_row(some: SuiteScores) -> None:
    record = json.loads(json.dumps(suite_record(some, PROTOCOL), allow_nan=False))
    rows = [*record["tasks"], *record["averages"]]
    assert {row["protocol"] for row in rows} == {record["protocol"]} == {PROTOCOL}
    assert [row["task"] for row in record["tasks"]] == ["wemath", "counting", "dynamath"]
    assert record["tasks"][0]["accuracy"] == pytest.approx(0.5)
    assert (record["tasks"][0]["num_scored"], record["tasks"][0]["is_partial"]) == (10, False)
    assert (record["tasks"][1]["is_limited"], record["tasks"][1]["is_partial"]) == (True, True)
    assert [row["is_partial"] for row in record["averages"]] == [True] * 3
    assert record["averages"][0]["missing"] == ["mathvista", "mathverse", "mmk12", "geomath", "geometry3k"]


def test_csv_has_a_row_a_task_a_category_and_an_average(some: SuiteScores) -> None:
    text = suite_csv(some, PROTOCOL)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == ",".join(CSV_FIELDS)
    assert [(row["task"], row["category"]) for row in rows] == [
        ("wemath", ""), ("counting", ""), ("dynamath", ""), ("dynamath", "(none)"), ("dynamath", "a[U+001B][31m"),
        ("Avg-Math", ""), ("Avg-Vision", ""), ("Overall", ""),
    ]  # fmt: skip
    assert {row["protocol"] for row in rows} == {PROTOCOL}
    assert [row["is_partial"] for row in rows[:2]] == ["False", "True"]
    assert rows[0]["num_clusters"] == ""
    assert (rows[-1]["is_partial"], rows[-1]["partial"]) == ("True", "counting")


def test_percent_has_one_decimal_place() -> None:
    assert [percent(share) for share in (0.0, 0.12345, 1.0, None)] == ["0.0", "12.3", "100.0", "-"]


def test_markup_in_a_protocol_is_text() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(suite_table(SuiteScores([], []), "[red]x\x1b"))
    assert "Protocol: [red]x[U+001B]" in console.export_text()
