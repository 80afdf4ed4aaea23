"""The page of one evaluation or two: its numbers, its rows, its images, and nothing else."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hostile.checks import Outline
from tests.pages.columns import unexplained_columns
from tests.suite.evaluations import graded, oversized, task_record, write_evaluation
from vgpo.commands import report
from vgpo.data.fingerprint import fingerprint
from vgpo.evaluation.answers import GradedAnswer
from vgpo.evaluation.benchmark_rows import load_benchmark
from vgpo.evaluation.benchmarks import BENCHMARKS
from vgpo.evaluation.errors import EvaluationError
from vgpo.pages.plots import tick_step
from vgpo.run import RunFolder, RunFolderError
from vgpo.suite.comparison import page_data
from vgpo.suite.folder import EvaluationFolder, TaskRecord
from vgpo.suite.page import (
    NUM_TICKS,
    Plot,
    difference_verdict,
    p_value,
    render_evaluations,
    score_verdict,
    write_evaluation_page,
)
from vgpo.suite.shown_rows import ShownRow, evenly, rows_of_task
from vgpo.suite.thumbnails import ImagesUnavailableError, row_images, thumbnails


def verdicts(text: str, **fields: Any) -> list[GradedAnswer]:
    """An answer for each character: `+` is right."""
    return [graded(row, correct=sign == "+", **fields) for row, sign in enumerate(text)]


@pytest.fixture
def two(tmp_path: Path) -> list[EvaluationFolder]:
    """Two checkpoints on MathVista, where a row was dropped and one is oversized, and on Counting."""
    lost = {"mathvista": task_record(8, num_asked=6, dropped=["row 7, no image"], oversized=[6])}
    first = {"mathvista": verdicts("+-+-+-"), "counting": verdicts("++--")}
    second = {"mathvista": verdicts("++--++"), "counting": verdicts("++-+")}
    for answers in (first, second):
        answers["mathvista"].append(oversized(6))
    second["mathvista"][3] = graded(3, correct=False, predicted=None, truncated=True)
    return [
        write_evaluation(tmp_path / "base", first, lost, checkpoint="runs/base", checkpoint_digest="a" * 64),
        write_evaluation(tmp_path / "vgpo", second, lost, checkpoint="runs/vgpo", checkpoint_digest="b" * 64),
    ]


def page_of(folders: list[EvaluationFolder], **options: Any) -> str:
    return render_evaluations(page_data(folders, **({"with_images": False} | options)))


def task_score(title: str, accuracy: float) -> dict[str, Any]:
    score = {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "num_scored": 1200}
    return {"title": title, "scores": [score], "difference": None}


def task_change(title: str, difference: float, reach: float) -> dict[str, Any]:
    ends = {"low": difference - reach, "high": difference + reach}
    return {"title": title, "difference": {"difference": difference, "num_rows": 50, **ends}}


def test_the_verdict_of_one_evaluation_is_its_widest_average() -> None:
    tasks = [task_score("A", 0.5), task_score("B", 0.25)]
    average = {"title": "Overall", "num_tasks": 10, "scores": [{**tasks[0]["scores"][0], "num_tasks": 2}]}
    found = score_verdict({"averages": [average], "tasks": tasks})
    assert found.headline == "Overall accuracy is 50.0 % [40.0, 60.0] (2 of 10 tasks)"
    assert score_verdict({"averages": [], "tasks": tasks}).headline == (
        "Accuracy is 25.0 % (B) to 50.0 % (A), over 2 tasks"
    )
    single = score_verdict({"averages": [], "tasks": tasks[:1]})
    assert single.headline == "A accuracy is 50.0 % [40.0, 60.0] (1,200 rows)"


def test_the_verdict_of_two_evaluations_is_their_difference() -> None:
    tasks = [task_change(name, change, 0.05) for name, change in zip("ABCD", (0.1, 0.2, -0.1, 0.01), strict=True)]
    counted = difference_verdict({"averages": [], "tasks": [*tasks, task_change("E", 0.0, 0.05), tasks[3]]})
    assert counted.headline == "B is above A on 2 of 6 tasks and below it on 1"
    assert counted.details == ["On 3 the 95 % interval holds 0: the difference may be chance."]
    single = difference_verdict({"averages": [], "tasks": tasks[3:]})
    assert single.headline.startswith("B is 1.0 points above A on D accuracy [")
    assert (single.tone, len(single.details)) == ("open", 1)
    average = {"title": "Overall", "difference": {"difference": 0.2, "low": 0.1, "high": 0.3, "tasks": ("a", "b")}}
    found = difference_verdict({"averages": [average], "tasks": tasks})
    assert found.headline == "B is 20.0 points above A on Overall accuracy [+10.0, +30.0] (2 tasks, paired)"
    assert found.tone == "gain"


def test_every_column_of_numbers_has_a_tooltip(two: list[EvaluationFolder]) -> None:
    assert unexplained_columns(page_of(two)) == []
    assert unexplained_columns(page_of(two[:1])) == []


def test_the_verdict_is_on_top(two: list[EvaluationFolder]) -> None:
    assert "points" in Outline(page_of(two)).texts_of("h2")[0]
    assert "accuracy is" in Outline(page_of(two[:1])).texts_of("h2")[0]


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def cells(page: str, heading: str, table: int) -> list[str]:
    """The texts of the first row with this heading in a table of the page."""
    body = page.split("<tbody>")[table]
    [row] = re.findall(rf'<th scope="row"[^>]*>{heading}</th>(.*?)</tr>', body, re.DOTALL)[:1]
    return [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]


def test_scores_of_each_checkpoint_are_those_of_its_answers(two: list[EvaluationFolder]) -> None:
    data = page_data(two, with_images=False)
    mathvista, counting = data["tasks"]
    assert [scores["accuracy"] for scores in mathvista["scores"]] == [3 / 8, 4 / 8]
    assert [scores["accuracy"] for scores in counting["scores"]] == [2 / 4, 3 / 4]
    assert (mathvista["scores"][0]["num_dropped"], mathvista["scores"][0]["num_oversized"]) == (1, 1)
    assert (mathvista["scores"][1]["num_truncated"], mathvista["scores"][1]["num_no_box"]) == (1, 1)
    assert data["num_rows"] == 11  # 6 answered and 1 oversized, and 4
    page = page_of(two)
    assert cells(page, "MathVista", 1)[0] == "A"
    assert cells(page, "MathVista", 1)[1].startswith("37.5 [")
    assert cells(page, "MathVista", 1)[3:] == ["8 of 1,000", "1", "1", "0", "0"]


def test_differences_count_dropped_rows_as_the_accuracies_do(two: list[EvaluationFolder]) -> None:
    mathvista, counting = page_data(two, with_images=False)["tasks"]
    found = mathvista["difference"]
    assert found["difference"] == pytest.approx(4 / 8 - 3 / 8)
    assert (found["won"], found["lost"], found["both"], found["neither"], found["num_rows"]) == (2, 1, 2, 3, 8)
    assert found["p_value"] == 1.0
    assert counting["difference"]["difference"] == 0.25
    page = page_of(two)
    shown = cells(page, "MathVista", 2)
    assert shown[:2] == ["37.5", "50.0"]
    assert shown[2].startswith("+12.5 [−")
    assert shown[3:] == ["1.000", "1", "2", "2", "3", "8"]


def test_a_row_that_is_oversized_for_one_checkpoint_counts_once_and_as_wrong_for_it(tmp_path: Path) -> None:
    record = task_record(3, num_asked=2, oversized=[2])
    folders = [
        write_evaluation(tmp_path / "a", {"counting": [*verdicts("+-"), oversized(2)]}, {"counting": record}),
        write_evaluation(tmp_path / "b", {"counting": verdicts("+-+")}),
    ]
    data = page_data(folders, with_images=False)
    [task] = data["tasks"]
    assert [scores["accuracy"] for scores in task["scores"]] == [1 / 3, 2 / 3]
    found = task["difference"]
    assert (found["first"], found["second"], found["num_rows"]) == (1 / 3, 2 / 3, 3)
    assert (found["won"], found["lost"], found["both"], found["neither"]) == (1, 0, 1, 1)
    assert data["num_rows"] == 3


def test_averages_that_lack_tasks_are_called_partial(two: list[EvaluationFolder]) -> None:
    page = page_of(two)
    assert cells(page, "Avg-Math", 1)[-1] == "partial: 1 of 6 tasks, not all rows"
    assert cells(page, "Overall", 1)[-1] == "partial: 2 of 10 tasks, not all rows"
    assert 'Avg-Math <span class="part">partial: 1 of 6 tasks, not all rows</span>' in page.replace("\n", "")
    [average] = [one for one in page_data(two, with_images=False)["averages"] if one["title"] == "Overall"]
    assert average["scores"][0]["accuracy"] == (3 / 8 + 2 / 4) / 2
    assert average["difference"]["difference"] == pytest.approx((1 / 8 + 1 / 4) / 2)


def test_one_evaluation_has_no_differences(two: list[EvaluationFolder]) -> None:
    page = page_of(two[:1])
    assert "Only A" not in Outline(page).texts_of("th")
    assert "B − A" not in page
    assert {row["outcome"] for row in embedded(page)["rows"]} == {"right", "wrong"}
    assert cells(page, "Counting|SuperClevr Counting", 1)[0].startswith("50.0 [")


def test_settings_in_which_two_evaluations_differ_are_named(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / "a", {"counting": verdicts("+")}, checkpoint_digest="a" * 64),
        write_evaluation(
            tmp_path / "b",
            {"counting": verdicts("+")},
            {"counting": task_record(1, fingerprint="1" * 64)},
            checkpoint_digest="b" * 64,
            max_new_tokens=512,
            template="plain",
        ),
    ]
    warnings = re.findall(r'<p class="warning">(.*?)</p>', page_of(folders))
    assert warnings[0].startswith("The evaluations differ in template, max_new_tokens: ")
    assert warnings[1].startswith("The evaluations read other data for SuperClevr Counting: ")
    assert not re.findall(r'<p class="warning">', page_of(folders[:1]))


def test_data_that_both_evaluations_share_have_one_row_per_task(two: list[EvaluationFolder], tmp_path: Path) -> None:
    tasks = r"<tr><th scope=\"row\">([^<]*)</th><td>.*?</td><td>nowhere</td>"
    assert re.findall(tasks, page_of(two)) == ["MathVista", "SuperClevr Counting"]
    other = {"mathvista": task_record(8, num_asked=6, dropped=["row 7, no image"], oversized=[6], form="local")}
    answers = {"mathvista": [*verdicts("++--++"), oversized(6)], "counting": verdicts("++-+")}
    second = write_evaluation(tmp_path / "other", answers, other)
    assert re.findall(tasks, page_of([two[0], second])) == ["MathVista", "MathVista", "SuperClevr Counting"]


def test_a_task_of_one_evaluation_alone_is_shown_without_a_difference(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / "a", {"counting": verdicts("+-"), "mmk12": verdicts("+--")}),
        write_evaluation(tmp_path / "b", {"counting": verdicts("++")}),
    ]
    data = page_data(folders, with_images=False)
    assert [task["difference"] is None for task in data["tasks"]] == [True, False]
    assert {row["outcome"] for row in data["rows"] if row["task"] == "mmk12"} == {"right", "wrong"}
    assert "MMK12" in page_of(folders)


@pytest.mark.parametrize(
    ("answers", "fields", "complaint"),
    [
        ({"counting": "+-"}, {"protocol": "lenient"}, "the first 'papo-greedy', the second 'lenient'"),
        ({"mmk12": "+-"}, {}, r"no task in common: the first has \['counting'\], the second \['mmk12'\]"),
        (
            {"counting": "+-+"},
            {},
            r"counting: the evaluations asked different questions: row 2 \('q2'\) only in the sec",
        ),
        ({"mine": "+-"}, {}, r"no task in common: the first has \['counting'\], the second \['mine'\]"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(
    tmp_path: Path, answers: dict[str, str], fields: dict[str, Any], complaint: str
) -> None:
    first = write_evaluation(tmp_path / "a", {"counting": verdicts("+-")})
    second = write_evaluation(tmp_path / "b", {task: verdicts(text) for task, text in answers.items()}, **fields)
    with pytest.raises(EvaluationError, match=complaint):
        page_data([first, second], with_images=False)


def test_a_task_that_cannot_be_compared_is_named_and_the_others_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_evaluation(tmp_path / "a", {"counting": verdicts("+-"), "mmk12": verdicts("+-")})
    second = write_evaluation(
        tmp_path / "b", {"counting": verdicts("++"), "mmk12": verdicts("++", problem="Another?")}
    )
    data = page_data([first, second], with_images=False)
    [reason] = data["incomparable"]
    assert reason.startswith("mmk12: the evaluations asked different questions: rows 0 ('q0'), 1 ('q1') with another")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"{reason}. The page compares the other tasks.")
    ]
    assert [(task["name"], task["difference"] is None) for task in data["tasks"]] == [
        ("mmk12", True), ("counting", False)
    ]  # fmt: skip
    assert [scores["accuracy"] for scores in data["tasks"][0]["scores"]] == [0.5, 1.0]
    assert {row["task"] for row in data["rows"]} == {"counting"}
    overall = next(average for average in data["averages"] if average["title"] == "Overall")
    assert overall["difference"]["tasks"] == ("counting",)
    assert "Scores only, no difference and no rows: mmk12: the evaluations asked" in page_of([first, second])
    assert page_data([first], with_images=False)["incomparable"] == []


def test_evaluations_without_a_task_that_can_be_compared_are_refused_with_every_reason(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", {task: verdicts("+-") for task in ("counting", "mmk12")})
    second = write_evaluation(tmp_path / "b", {task: verdicts("+-+") for task in ("counting", "mmk12", "wemath")})
    with pytest.raises(EvaluationError) as error:
        page_data([first, second], with_images=False)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == ["mmk12", "counting"]


def test_settings_in_the_heading_are_those_of_both(tmp_path: Path) -> None:
    answers = {"counting": verdicts("+")}
    folders = [
        write_evaluation(tmp_path / "a", answers, limit=1, max_new_tokens=96),
        write_evaluation(tmp_path / "b", answers, limit=2, max_new_tokens=96),
    ]
    [heading] = re.findall(r'<p class="facts-line">(.*?)</p>', page_of(folders))
    assert heading == "protocol papo-greedy · template think_boxed · at most 96 new tokens · 1 task, 1 rows"
    [heading] = re.findall(r'<p class="facts-line">(.*?)</p>', page_of(folders[:1]))
    assert "the first 1 rows of each task" in heading


def test_the_headings_of_several_samples_say_who_is_right_more_often(tmp_path: Path) -> None:
    sampled = {"counting": [*verdicts("+-"), *verdicts("--", sample=1)]}
    several = [write_evaluation(tmp_path / name, sampled, protocol="papo-avg@2") for name in "ab"]
    single = [write_evaluation(tmp_path / name, {"counting": verdicts("+-")}) for name in "cd"]
    greedy, often = ["Only A", "Only B", "Both", "Neither"], ["A more often", "B more often", "Equally often", "Never"]
    for folders, shown, hidden in ((several, often, greedy), (single, greedy, often)):
        headings = Outline(page_of(folders)).texts_of("span")
        assert [heading for heading in headings if heading in shown + hidden] == shown
        assert embedded(page_of(folders))["several_samples"] is (shown is often)


def test_an_evaluation_without_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the evaluation has no task yet; run the same"):
        page_data([write_evaluation(tmp_path / "a", {})])


def outcomes(rows: list[ShownRow]) -> list[tuple[str, int, str]]:
    return [(row.task, row.question.row, row.outcome) for row in rows]


def test_rows_on_which_the_checkpoints_differ_come_first_then_wrong_ones() -> None:
    rows = rows_of_task("t", [verdicts("+-+-+"), verdicts("+-+++")], 4)
    assert outcomes(rows) == [("t", 3, "second"), ("t", 1, "neither"), ("t", 0, "both"), ("t", 2, "both")]
    alone = rows_of_task("t", [None, verdicts("+-+-")], 3)
    assert outcomes(alone) == [("t", 1, "wrong"), ("t", 3, "wrong"), ("t", 0, "right")]


def test_several_samples_make_a_row_mixed_or_compare_by_their_number() -> None:
    first = [*verdicts("+--"), *verdicts("-+-", sample=1)]
    second = [*verdicts("++-"), *verdicts("+--", sample=1)]
    assert outcomes(rows_of_task("t", [first, second], 3)) == [
        ("t", 0, "second"),
        ("t", 2, "neither"),
        ("t", 1, "both"),
    ]
    assert outcomes(rows_of_task("t", [first], 3)) == [("t", 0, "mixed"), ("t", 1, "mixed"), ("t", 2, "wrong")]


def test_rows_are_spread_evenly_over_the_tasks_as_far_as_these_have_them() -> None:
    tasks = [rows_of_task(name, [verdicts("-" * number)], 10) for name, number in [("a", 6), ("b", 1), ("c", 6)]]
    counts = {
        number: [[row.task for row in evenly(tasks, number)].count(name) for name in "abc"] for number in (3, 7, 50)
    }
    assert counts == {3: [1, 1, 1], 7: [3, 1, 3], 50: [6, 1, 6]}
    assert [row.task for row in evenly(tasks, 7)] == ["a"] * 3 + ["b"] + ["c"] * 3


def test_the_page_says_how_many_rows_of_how_many_it_shows(two: list[EvaluationFolder]) -> None:
    page = page_of(two, num_rows=3)
    assert "3 of 11 rows are on this page" in page
    assert [(row["task"], row["row"]) for row in embedded(page)["rows"]] == [
        ("mathvista", 1), ("mathvista", 2), ("counting", 3)
    ]  # fmt: skip
    assert "This page shows none of the 11 rows." in page_of(two, num_rows=0)


def test_what_the_browser_shows_of_a_row(two: list[EvaluationFolder]) -> None:
    rows = {(row["task"], row["row"]): row for row in embedded(page_of(two))["rows"]}
    row = rows["mathvista", 3]
    assert (row["id"], row["problem"], row["answer"], row["outcome"]) == ("q3", "<image>What is 3?", "3", "neither")
    first, second = row["answers"]
    assert first == [
        {"predicted": "no", "correct": False, "truncated": False, "oversized": False, "completion": "So \\boxed{no}"}
    ]
    assert (second[0]["predicted"], second[0]["truncated"]) == (None, True)
    assert rows["mathvista", 6]["answers"][0][0]["oversized"] is True


def test_long_texts_are_cut_and_few_samples_shown(tmp_path: Path) -> None:
    long = "word " * 200_000
    texts = {"problem": long, "answer": long, "id": long, "category": long, "completion": long, "predicted": long}
    answers = [graded(0, correct=True, sample=sample, **texts) for sample in range(20)]
    page = page_of([write_evaluation(tmp_path / "a", {"counting": answers})])
    assert len(page) < 300_000
    [row] = embedded(page)["rows"]
    assert (row["num_right"], row["num_answers"], len(row["answers"][0])) == ([20], [20], 8)
    assert row["answers"][0][0]["completion"].endswith("more characters]")


def test_rows_that_do_not_fit_are_left_out_and_counted(
    two: list[EvaluationFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(json.dumps(page_data(two, with_images=False)["rows"]))
    monkeypatch.setattr("vgpo.suite.comparison.ROW_BYTES", size // 2)
    data = page_data(two, with_images=False)
    assert 0 < len(data["rows"]) < 11
    assert data["left_out"] == 11 - len(data["rows"])
    assert f"{data['left_out']} further rows do not fit into the page." in page_of(two)


def write_source(path: Path, colours: list[str], **fields: Any) -> TaskRecord:
    """A file of rows with an image of each colour, and its record."""
    for colour in colours:
        size = (600, 300) if colour == "red" else (40, 20)
        Image.new("RGB", size, colour).save(path.with_name(f"{colour}.png"))
    rows = [
        {"images": [f"{colour}.png"], "problem": f"<image>{row}?", "answer": str(row)} | fields
        for row, colour in enumerate(colours)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task_record(len(rows), source=str(path), form="repo", fingerprint=fingerprint_of(path))


def fingerprint_of(path: Path, rows: Sequence[int] | None = None) -> str:
    dataset = load_benchmark(BENCHMARKS["geometry3k"], str(path)).dataset
    return fingerprint(dataset if rows is None else dataset.select(rows))


@pytest.fixture
def with_images(tmp_path: Path) -> EvaluationFolder:
    """An evaluation of three rows of Geometry3K, of which two have the same image."""
    record = write_source(tmp_path / "geometry3k.jsonl", ["red", "blue", "red"])
    answers = [graded(row, correct=row < 1) for row in range(3)]
    return write_evaluation(tmp_path / "evaluation", {"geometry3k": answers}, {"geometry3k": record})


def test_images_are_reduced_and_embedded_once(with_images: EvaluationFolder) -> None:
    data = page_data([with_images])
    assert data["without_images"] == []
    assert [(image["width"], image["height"]) for image in data["images"]] == [(40, 20), (256, 128)]
    assert all(image["uri"].startswith("data:image/jpeg;base64,") for image in data["images"])
    assert {row["row"]: row["images"] for row in data["rows"]} == {0: [1], 1: [0], 2: [1]}
    assert page_data([with_images], with_images=False)["images"] == []


def test_images_of_the_rows_shown_alone_are_read(
    with_images: EvaluationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(*args: Any, **options: Any) -> dict:
        asked.append(options)
        return row_images(*args, **options)

    monkeypatch.setattr("vgpo.suite.comparison.row_images", spy)
    assert len(page_data([with_images], num_rows=1)["images"]) == 1
    assert asked == [{"asked": frozenset({0, 1, 2}), "shown": {1}}]


def test_other_data_at_the_source_are_not_shown(with_images: EvaluationFolder, tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), "green").save(tmp_path / "red.png")
    page = page_of([with_images], with_images=True)
    assert embedded(page)["images"] == []
    assert "The images of 1 task are not shown" in page
    assert f"Geometry3K: {tmp_path}/geometry3k.jsonl is no longer what was evaluated." in page


def test_a_source_that_is_gone_is_said(with_images: EvaluationFolder, tmp_path: Path) -> None:
    (tmp_path / "geometry3k.jsonl").unlink()
    page = page_of([with_images], with_images=True)
    assert embedded(page)["images"] == []
    assert f"Geometry3K: {tmp_path}/geometry3k.jsonl cannot be read (" in page


def test_each_task_has_images_of_its_own(tmp_path: Path) -> None:
    tasks = {}
    for name, colour in (("geometry3k", "blue"), ("counting", "green")):
        (tmp_path / name).mkdir()
        tasks[name] = write_source(tmp_path / name / "rows.jsonl", [colour])
    folder = write_evaluation(tmp_path / "evaluation", {name: verdicts("+") for name in tasks}, tasks)
    data = page_data([folder])
    assert [(row["task"], row["images"]) for row in data["rows"]] == [("geometry3k", [0]), ("counting", [1])]
    assert len({image["uri"] for image in data["images"]}) == 2


def test_images_are_read_with_the_limit_of_the_evaluation_that_has_the_task(tmp_path: Path) -> None:
    record = write_source(tmp_path / "rows.jsonl", ["red", "blue"])
    first = write_evaluation(tmp_path / "a", {"counting": verdicts("+")}, limit=1)
    second = write_evaluation(
        tmp_path / "b", {"counting": verdicts("+"), "geometry3k": verdicts("+-")}, {"geometry3k": record}, limit=2
    )
    data = page_data([first, second])
    assert [row["images"] for row in data["rows"] if row["task"] == "geometry3k"] == [[0], [1]]
    assert not any("Geometry3K" in reason for reason in data["without_images"])


def test_rows_that_were_not_asked_are_no_part_of_what_was_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    record = write_source(path, ["red", "blue", "green"]).model_copy(
        update={"fingerprint": fingerprint_of(path, [0, 2])}
    )
    found = row_images(BENCHMARKS["geometry3k"], record, None, asked={0, 2}, shown={2})
    assert {row: len(images) for row, images in found.items()} == {2: 1}
    with pytest.raises(ImagesUnavailableError, match="is no longer what was evaluated"):
        row_images(BENCHMARKS["geometry3k"], record, None, asked={0, 1, 2}, shown={2})


def test_no_more_is_loaded_than_the_evaluation_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = write_source(tmp_path / "rows.jsonl", ["red", "blue"])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"images": ["gone.png"], "problem": "<image>2?", "answer": "2"}) + "\n")
    caplog.clear()
    assert len(row_images(BENCHMARKS["geometry3k"], record, 2, asked={0, 1}, shown={0, 1})) == 2
    assert "Dropped" not in caplog.text


def test_of_many_images_a_few_are_shown_and_one_that_cannot_be_read_is_none() -> None:
    image = Image.new("RGB", (8, 8))
    assert [entry is None for entry in thumbnails([b"no image", *[image] * 6])] == [True, False, False, False]
    assert thumbnails(None) == []


def test_a_page_is_written_and_an_older_one_replaced(two: list[EvaluationFolder], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("older")
    report.run([folder.path for folder in two], out, num_rows=5)
    assert "runs/base" in out.read_text(encoding="utf-8")
    assert len(embedded(out.read_text(encoding="utf-8"))["rows"]) == 5


def test_folders_of_two_kinds_are_refused(two: list[EvaluationFolder], tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {}, seed=0, command=[])
    run.write_evaluation({"before": None})
    with pytest.raises(
        RunFolderError, match=r"base holds an evaluation and .*/run does not; write one page about run"
    ):
        report.run([two[0].path, run.path], tmp_path / "page.html")
    with pytest.raises(RunFolderError, match="--rows and --no-images are for evaluation folders"):
        report.run([run.path], tmp_path / "page.html", num_rows=3)
    assert not (tmp_path / "page.html").exists()


def test_a_third_folder_and_one_given_twice_are_refused(two: list[EvaluationFolder], tmp_path: Path) -> None:
    first, second = (folder.path for folder in two)
    with pytest.raises(RunFolderError, match="found 3 evaluations, expected one or two"):
        write_evaluation_page([first, second, first], tmp_path / "page.html")
    with pytest.raises(RunFolderError, match="was given twice; name each evaluation folder once"):
        write_evaluation_page([first, second / ".." / "base"], tmp_path / "page.html")


def test_the_page_asks_nothing_of_the_network(two: list[EvaluationFolder]) -> None:
    page = page_of(two)
    without_data = re.sub(r'id="report-data">.*?</script>', "></script>", page, flags=re.DOTALL)
    assert re.findall(r"https?:|\bsrc=|\bhref=|url\(|@import", without_data) == []
    [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("reach", "step"), [(0.01, 0.005), (0.02, 0.01), (0.05, 0.02), (0.38, 0.1), (0.4, 0.2), (1.0, 0.5), (0.099, 0.02)]
)
def test_ticks_are_round_and_at_least_two_on_each_side(reach: float, step: float) -> None:
    assert tick_step(reach, NUM_TICKS) == pytest.approx(step)


def test_a_plot_places_values_between_its_margins() -> None:
    plot = Plot(-0.1, 0.1, (), num_lines=3)
    assert (plot.x(-0.1), plot.x(0.1)) == (plot.left, plot.width - plot.right)
    assert plot.x(0.0) == (plot.left + plot.width - plot.right) / 2
    assert [plot.y(number) for number in range(3)] == [19, 45, 71]


def test_p_values_are_never_written_as_nought() -> None:
    assert [p_value(p) for p in (None, 1.0, 0.0387, 0.001, 0.0009, 0.0)] == [
        "–", "1.000", "0.039", "0.001", "< 0.001", "< 0.001"
    ]  # fmt: skip
