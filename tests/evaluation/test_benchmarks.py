"""The table of benchmarks, where their rows are looked for, and how they are read in every published form."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import datasets
import PIL.ImageFile
import psutil
import pytest

from tests.evaluation.benchmark_files import CASES, MATHVERSE, MATHVISTA, Case, hub, lines, papo, png, whole
from vgpo.data import AS_IT_IS, DataError, Reading
from vgpo.evaluation import benchmark_rows
from vgpo.evaluation.answers import Question
from vgpo.evaluation.benchmark_rows import HUB, PAPO, REPO, load_benchmark, source_of, with_data
from vgpo.evaluation.benchmarks import BENCHMARKS, FURTHER, MATH, SUITES, VISION, tasks_of
from vgpo.evaluation.errors import EvaluationError
from vgpo.options import lettered_options

SIX = ["mathvista", "mathverse", "wemath", "mmk12", "geomath", "geometry3k"]
FOUR = ["logicvista", "counting", "mmmu_pro", "mathverse_v"]
TEN = [*SIX, *FOUR]


def case_of(task: str, form: str) -> Case:
    return next(case for case in CASES if (case.task, case.form) == (task, form))


def test_the_suite_is_the_papers_ten() -> None:
    assert list(SUITES["vgpo"]) == TEN
    assert (list(SUITES["vgpo-math"]), list(SUITES["vgpo-vision"])) == (SIX, FOUR)
    groups = {name: benchmark.group for name, benchmark in BENCHMARKS.items() if name not in TEN}
    assert groups == {"mathvision": FURTHER, "dynamath": FURTHER}
    assert {BENCHMARKS[name].group for name in TEN} == {MATH, VISION}


def test_every_benchmark_says_where_its_rows_are() -> None:
    assert [name for name, benchmark in BENCHMARKS.items() if benchmark.original is None] == ["geomath"]
    assert all(benchmark.papo_split for name, benchmark in BENCHMARKS.items() if name in TEN and name != "geomath")
    assert all(benchmark.licence for benchmark in BENCHMARKS.values())
    assert "unconfirmed" in BENCHMARKS["mathverse_v"].notes
    assert BENCHMARKS["mathverse"].num_rows == 436 * 5
    assert BENCHMARKS["mathverse_v"].num_rows == 436 * 3


def test_tasks_are_those_of_the_suite_or_those_named() -> None:
    assert [benchmark.name for benchmark in tasks_of("vgpo")] == TEN
    named = tasks_of("vgpo", ["dynamath", "wemath", "dynamath"])
    assert [benchmark.name for benchmark in named] == ["dynamath", "wemath"]


@pytest.mark.parametrize(
    ("suite", "names", "message"),
    [
        ("vgpo-maths", [], r"there is no suite 'vgpo-maths' \(did you mean 'vgpo-math'\?\); the suites are"),
        ("vgpo", ["mathverse-v"], r"there is no task 'mathverse-v' \(did you mean 'mathverse_v'\?\); the tasks are"),
    ],
)
def test_an_unknown_suite_or_task_is_refused_with_the_nearest(suite: str, names: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        tasks_of(suite, names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_benchmark_is_read_in_each_of_its_forms(case: Case, tmp_path: Path) -> None:
    read = load_benchmark(BENCHMARKS[case.task], case.write(tmp_path))
    assert read.form == case.form
    expected = [
        Question(**{"options": {}, **fields, "row": row}).model_dump() for row, fields in case.questions.items()
    ]
    assert [question.model_dump() for question in read.questions] == expected
    assert read.num_rows == len(case.questions) + len(read.dropped)
    assert read.dataset["row"][:] == list(case.questions)
    assert all(read.dataset.with_format("arrow")["images"].to_pylist())


def test_every_benchmark_is_read_in_every_form_that_it_has() -> None:
    forms = {name: {case.form for case in CASES if case.task == name} for name in BENCHMARKS}
    for name, benchmark in BENCHMARKS.items():
        assert forms[name] == {HUB, REPO} | ({PAPO} if benchmark.papo_split else set())


def test_a_row_without_question_and_answer_is_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = load_benchmark(BENCHMARKS["logicvista"], case_of("logicvista", HUB).write(tmp_path))
    assert (read.num_rows, len(read.questions)) == (3, 2)
    assert [str(fault) for fault in read.dropped] == [
        "row 1, field 'problem': empty; expected the question. Fill it or drop the row"
    ]
    assert any(message.startswith("Dropped 1 of 3 rows, which cannot be used") for message in caplog.messages)


@pytest.mark.parametrize(
    ("stored", "read"),
    [(2.0, 2), (0.0, 0), (20.0, 20), (float("nan"), None), (1e9, None), (float("inf"), None), (-1.0, None),
     (1.5, None), (None, None), (True, None), (10**18, None)],
)  # fmt: skip
def test_decimal_places_are_whole_numbers_up_to_20_or_none(tmp_path: Path, stored: Any, read: int | None) -> None:
    rows = [{"problem": "How wide?", "answer": "0.21", "precision": stored, "category": float("nan")}]
    source = hub(rows, "test", "image")(tmp_path)
    benchmark = dataclasses.replace(BENCHMARKS["geomath"], precision="precision", category="category")
    [found] = load_benchmark(benchmark, source).questions
    assert (found.precision, found.category) == (read, None)


@pytest.mark.parametrize("places", [float("nan"), 1e9])
def test_places_that_are_none_are_not_asked_for(tmp_path: Path, places: float) -> None:
    rows = [{**MATHVISTA[1], "precision": places, "unit": None}]
    [found] = load_benchmark(BENCHMARKS["mathvista"], hub(rows, "testmini", "decoded_image")(tmp_path)).questions
    assert (found.problem, found.precision) == ("How wide?", None)


def test_faulty_rows_can_be_an_error(tmp_path: Path) -> None:
    source = case_of("logicvista", HUB).write(tmp_path)
    with pytest.raises(DataError, match="row 1, field 'problem': empty"):
        load_benchmark(BENCHMARKS["logicvista"], source, reading=AS_IT_IS)


def test_rows_that_cannot_be_read_and_images_that_are_gone_are_dropped_once_each(tmp_path: Path) -> None:
    source = case_of("wemath", REPO).write(tmp_path)
    file = tmp_path / "testmini.json"
    file.write_text(file.read_text().replace('"answer": "A"', '"answer": "X"'))
    (tmp_path / "2steps/image/1.png").unlink()
    with pytest.raises(DataError, match="row 0, field 'answer': 'X' is not one of the options"):
        load_benchmark(BENCHMARKS["wemath"], source)
    (tmp_path / "2steps/image/1.png").write_bytes(png())
    read = load_benchmark(BENCHMARKS["wemath"], source)
    assert [fault.row for fault in read.dropped] == [0]
    assert [question.row for question in read.questions] == [1]


def test_faults_of_rows_that_belong_to_another_benchmark_do_not_count(tmp_path: Path) -> None:
    rows = [{**row, "image": f"{number}.png"} for number, row in enumerate(MATHVERSE)]
    rows[3]["answer"] = [7]  # cannot be read, and is free-form
    source = whole(rows, "testmini.json", "images")(tmp_path)
    (tmp_path / "images/0.png").unlink()  # Text Dominant
    (tmp_path / "images/2.png").unlink()  # free-form
    assert load_benchmark(BENCHMARKS["mathverse_v"], source).dropped == []
    read = load_benchmark(BENCHMARKS["mathverse"], source)
    assert [fault.row for fault in read.dropped] == [0]
    assert (read.num_rows, len(read.questions)) == (3, 2)


def test_a_limit_takes_the_first_rows_and_does_not_replace_dropped_ones(tmp_path: Path) -> None:
    read = load_benchmark(BENCHMARKS["logicvista"], case_of("logicvista", HUB).write(tmp_path), limit=2)
    assert (read.num_rows, [question.row for question in read.questions]) == (3, [0])
    assert [fault.row for fault in read.dropped] == [1]


def test_rows_of_a_limit_may_have_no_image_but_not_the_whole_set(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": 7, "image": image} for image in ("", "1.png")]
    source = lines(rows, "geomath.jsonl")(tmp_path)
    assert len(load_benchmark(BENCHMARKS["geomath"], source, limit=1).questions) == 1
    assert len(load_benchmark(BENCHMARKS["geomath"], source).questions) == 2
    with pytest.raises(DataError, match="no row of the dataset has an image"):
        load_benchmark(BENCHMARKS["geomath"], lines(rows[:1], "none.jsonl")(tmp_path))


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="limit is 0, expected at least 1 row"):
        load_benchmark(BENCHMARKS["counting"], case_of("counting", HUB).write(tmp_path), limit=0)


def test_rows_with_the_same_id_are_all_asked(tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": f"<image>{number}?", "answer": "7"} for number in range(2)]
    read = load_benchmark(BENCHMARKS["counting"], hub(rows, "test", "images", as_list=True)(tmp_path))
    assert [(question.row, question.id) for question in read.questions] == [(0, "a"), (1, "a")]


def test_a_source_with_another_number_of_rows_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = case_of("counting", HUB).write(tmp_path)
    load_benchmark(BENCHMARKS["counting"], source)
    expected = f"{source}@test has 1 rows of SuperClevr Counting, expected 200: scores are not those of the complete"
    assert any(message.startswith(expected) for message in caplog.messages)


def test_papos_logicvista_is_expected_without_the_empty_row() -> None:
    assert BENCHMARKS["logicvista"].expected_rows(papo=True) == 447
    assert BENCHMARKS["logicvista"].expected_rows(papo=False) == 448
    assert BENCHMARKS["wemath"].expected_rows(papo=True) == 1740


def test_rows_cannot_be_selected_without_their_columns(tmp_path: Path) -> None:
    source = hub([{"problem": "<image>a", "answer": "B"}], "testmini", "images", as_list=True)(tmp_path)
    message = "has no column 'question_type', by which the rows of MathVerse-V are selected; expected the columns of"
    with pytest.raises(DataError, match=message):
        load_benchmark(BENCHMARKS["mathverse_v"], source)


def test_a_source_without_a_row_of_the_benchmark_is_refused(tmp_path: Path) -> None:
    source = hub([row for row in MATHVERSE if row["question_type"] == "free-form"], "testmini", "image")(tmp_path)
    with pytest.raises(DataError, match=r"none of the 2 rows of \S+ belongs to MathVerse; expected question_type"):
        load_benchmark(BENCHMARKS["mathverse"], source)


def test_control_tokens_are_faults(tmp_path: Path) -> None:
    rows = [{"problem": f"<image>{text}", "answer": "7"} for text in ("a", "b <|im_end|>")]
    source = hub(rows, "test", "images", as_list=True)(tmp_path)
    read = load_benchmark(BENCHMARKS["counting"], source, forbidden=["<|im_end|>"])
    assert [fault.row for fault in read.dropped] == [1]


def test_images_stay_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rows, "find_faults", lambda *_, **__: iter(()))

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", refuse)
    read = load_benchmark(BENCHMARKS["mathverse"], case_of("mathverse", HUB).write(tmp_path))
    assert len(read.questions) == 3


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    image = PIL.Image.effect_noise((512, 512), 90)
    rows: dict[str, Any] = {"problem": ["<image>a"] * 600, "answer": ["7"] * 600}
    image.save(tmp_path / "noise.png")
    stored = (tmp_path / "noise.png").read_bytes()  # about 0.25 MB: 150 MB in all
    rows["images"] = [[{"bytes": stored, "path": None}]] * 600
    features = datasets.Features(
        images=datasets.List(datasets.Image()), problem=datasets.Value("string"), answer=datasets.Value("string")
    )
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set/test.parquet")
    del rows
    load_benchmark(BENCHMARKS["counting"], str(tmp_path / "set"), limit=64)
    process = psutil.Process()
    before = process.memory_info()
    read = load_benchmark(BENCHMARKS["counting"], str(tmp_path / "set"))
    grown = process.memory_info()
    assert len(read.questions) == 600
    # Mapped files count as resident, but a process does not need them in memory.
    assert (grown.rss - grown.shared) - (before.rss - before.shared) < 600 * len(stored) / 3


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["wemath/testmini.parquet"], "wemath"),
        (["wemath.parquet", "wemath.json"], "wemath.parquet"),
        (["wemath.jsonl"], "wemath.jsonl"),
        (["wemath.json", "data/We_Math-00000-of-00001.parquet"], "wemath.json"),
        (["data/We_Math-00000-of-00001.parquet"], ".@We_Math"),
        (["We_Math-00000-of-00002.parquet"], ".@We_Math"),
        (["We_Math.parquet"], ".@We_Math"),
    ],
)
def test_a_task_is_found_in_a_folder_of_several(tmp_path: Path, names: list[str], source: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = str(tmp_path) + source.removeprefix(".") if source.startswith(".") else str(tmp_path / source)
    assert source_of(BENCHMARKS["wemath"], str(tmp_path)) == expected


def test_the_vision_dependent_split_is_not_taken_for_mathverse(tmp_path: Path) -> None:
    (tmp_path / "AI4Math_MathVerse_vision_dependent-00000-of-00001.parquet").touch()
    assert source_of(BENCHMARKS["mathverse_v"], str(tmp_path)).endswith("@AI4Math_MathVerse_vision_dependent")
    with pytest.raises(DataError, match="there are no data of MathVerse in"):
        source_of(BENCHMARKS["mathverse"], str(tmp_path))


def test_mathverse_v_is_found_in_the_original_mathverse(tmp_path: Path) -> None:
    case_of("mathverse", HUB).write(tmp_path / "mathverse")
    source = source_of(BENCHMARKS["mathverse_v"], str(tmp_path))
    assert source == str(tmp_path / "mathverse")
    assert [question.row for question in load_benchmark(BENCHMARKS["mathverse_v"], source).questions] == [1, 4]


def test_a_folder_without_the_task_is_an_error_that_lists_what_was_looked_for(tmp_path: Path) -> None:
    looked_for = ["mmk12", "mmk12.parquet", "mmk12.jsonl", "mmk12.json", "data/PAPO_MMK12-*.parquet"]
    looked_for += ["data/PAPO_MMK12.parquet", "PAPO_MMK12-*.parquet", "PAPO_MMK12.parquet"]
    listed = "".join(f"  {tmp_path / name}\n" for name in looked_for)
    message = f"there are no data of MMK12 in {tmp_path}; looked for\n{listed}Add one of them, or write --data mmk12"
    with pytest.raises(DataError, match=re.escape(message)):
        source_of(BENCHMARKS["mmk12"], str(tmp_path))


def test_a_source_of_the_task_comes_before_a_folder_and_the_last_counts(tmp_path: Path) -> None:
    (tmp_path / "wemath.json").touch()
    options = ["wemath=mine.json", str(tmp_path), "wemath=owner/name@test"]
    assert source_of(BENCHMARKS["wemath"], options) == "owner/name@test"
    assert source_of(BENCHMARKS["wemath"], {"wemath": "mine.json"}) == "mine.json"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/wemath.json").touch()
    folders = [str(tmp_path / "other"), str(tmp_path)]
    assert source_of(BENCHMARKS["wemath"], folders) == str(tmp_path / "wemath.json")
    assert (
        source_of(BENCHMARKS["wemath"])
        == source_of(BENCHMARKS["wemath"], {"mmk12": "x"})
        == "We-Math/We-Math@testmini"
    )


def test_an_option_that_is_neither_a_folder_nor_a_task_is_refused() -> None:
    message = "there is no folder 'nowhere'; name a folder with the data of the tasks, or write TASK=SOURCE"
    with pytest.raises(DataError, match=message):
        source_of(BENCHMARKS["wemath"], ["nowhere"])


def test_a_task_of_the_users_has_rows_in_any_format_with_columns_under_other_names(tmp_path: Path) -> None:
    own = tasks_of("vgpo", ["mine", "wemath"], own=["mine"])[0]
    source = hub([{"question": "How far?", "right": "7"}], "train", "image")(tmp_path)
    assert source_of(own, [f"mine={source}"]) == source
    read = load_benchmark(own, source, reading=Reading(format="question", columns={"answer": "right"}))
    assert [(question.problem, question.answer) for question in read.questions] == [("How far?", "7")]


def test_messages_have_the_form_of_papo_eval_if_they_ask_for_a_box(tmp_path: Path) -> None:
    own = tasks_of("vgpo", ["mine"], own=["mine"])[0]
    assert load_benchmark(own, papo("counting", [("How many?", "4")])(tmp_path / "asks")).form == PAPO
    rows = [{"messages": [{"role": "user", "content": "<image>How?"}, {"role": "assistant", "content": "4"}]}]
    assert load_benchmark(own, hub(rows, "train", "images", as_list=True)(tmp_path / "plain")).form == HUB


def test_a_benchmark_without_data_is_left_out_of_a_suite_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suite = tasks_of("vgpo-math")
    assert [benchmark.name for benchmark in with_data(suite)] == [name for name in SIX if name != "geomath"]
    assert "GeoMath is skipped: it has no public data" in caplog.text
    assert len(with_data(suite, {"geomath": "x.json"})) == 6
    (tmp_path / "geomath.json").touch()
    assert len(with_data(suite, str(tmp_path))) == 6


def test_the_source_of_local_rows_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case_of("counting", HUB).write(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    assert load_benchmark(BENCHMARKS["counting"], "rows").source == f"{tmp_path}/rows@test"
    file = next((tmp_path / "rows").rglob("*.parquet")).relative_to(tmp_path)
    assert load_benchmark(BENCHMARKS["counting"], str(file)).source == str(tmp_path / file)


@pytest.mark.parametrize("option", ["mine=", "maße=x.parquet", "../up=x.parquet"])
def test_an_empty_source_and_a_name_that_is_no_file_name_are_refused(option: str) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        source_of(BENCHMARKS["wemath"], [option])


def test_a_task_without_public_data_asks_for_them_and_names_their_columns() -> None:
    message = (
        r"GeoMath has no public data. Pass your own by --data geomath=SOURCE: a file or folder whose rows have the "
        r"columns problem \(or question\), answer, and images \(or image\)"
    )
    for ask in (source_of, load_benchmark):
        with pytest.raises(DataError, match=message):
            ask(BENCHMARKS["geomath"])


def test_a_downloaded_repository_is_entered_at_its_configuration_and_split(tmp_path: Path) -> None:
    case = case_of("mmmu_pro", HUB)
    case.write(tmp_path / "vision")
    hub([{"id": "a", "question": "b", "options": "['1', '2']", "answer": "A", "subject": "Art"}], "test", "image_1")(
        tmp_path / "standard (10 options)"
    )
    read = load_benchmark(BENCHMARKS["mmmu_pro"], str(tmp_path))
    assert read.source == f"{tmp_path / 'vision'}@test"
    assert [question.id for question in read.questions] == ["test_Art_1"]


def test_a_folder_of_papos_splits_is_read_at_the_split_of_the_task(tmp_path: Path) -> None:
    papo("wemath", [("How far?", "A")])(tmp_path)
    papo("counting", [("How many?", "4"), ("How many?", "5")])(tmp_path)
    for source in (source_of(BENCHMARKS["counting"], str(tmp_path)), str(tmp_path)):
        read = load_benchmark(BENCHMARKS["counting"], source)
        assert (read.form, [question.answer for question in read.questions]) == (PAPO, ["4", "5"])


def test_the_original_set_is_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case_of("mmmu_pro", HUB).write(tmp_path)
    stored = datasets.Dataset.from_parquet(str(next(tmp_path.rglob("*.parquet"))))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or stored)
    read = load_benchmark(BENCHMARKS["mmmu_pro"])
    assert asked == [(("MMMU/MMMU_Pro", "vision"), {"split": "test"})]
    assert (read.form, read.source) == (HUB, "MMMU/MMMU_Pro/vision@test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which?\nA. red\nB. blue", {"A": "red", "B": "blue"}),
        ("Which?\nA: red\nB:blue", {"A": "red", "B": "blue"}),
        ("Which?\n(A) red\n (B) blue ;", {"A": "red", "B": "blue"}),
        ("Which?\nA) red\nB) blue\nGive the letter.", {"A": "red", "B": "blue"}),
        ("Which?\nA．①\nB、②", {"A": "①", "B": "②"}),
        ("Which?\nA. two\nlines\nB. blue", {"A": "two\nlines", "B": "blue"}),
        ("Which? Select from A, B, and C. (A) red (B) blue  (C) none of (A) and (B)",
         {"A": "red", "B": "blue", "C": "none of (A) and (B)"}),
        ("Which? Select from A-B: A) red B) both", {"A": "red", "B": "both"}),
        ("A. B. Smith walks.\nHow far?\nA. 3\nB. 4", {"A": "3", "B": "4"}),
        ("Is it (A) up or (B) down?\nA. only A\nB. both", {"A": "only A", "B": "both"}),
        ("Which? (A) (B) (C)", {}),
        ("Which?\nA. 45° B. 60° ;C. 75°", {}),
        ("Which?\nB. red\nC. blue", {}),
        ("What is P(A) or f(B)?", {}),
        ("Why?", {}),
    ],
)  # fmt: skip
def test_options_are_read_from_their_letters(text: str, expected: dict[str, str]) -> None:
    assert lettered_options(text) == expected


def test_reading_options_is_linear() -> None:
    text = "(A) " * 200_000 + "\nA. " * 200_000
    assert lettered_options(text) == {}
