import json
import logging
from typing import Any

import datasets
import pytest

from vgpo.data import FORMATS, DataError, check_dataset, to_prompts
from vgpo.data.readers import to_canonical
from vgpo.rewards import strip_outer_box

IMAGE = datasets.Image()
IMAGE_ROW = {"type": "image", "text": None}


def turns(*pairs: tuple[str, str], names: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    return [dict(zip(names, pair, strict=True)) for pair in pairs]


# format, row without its image, name of the image column, then problem, answer, id and meta as they are read.
ROWS: list[tuple[str, dict[str, Any], str, str, str, str, dict[str, Any]]] = [
    ("easyr1", {"problem": "<image>a", "answer": 7}, "images", "<image>a", "7", "0", {}),
    ("easyr1", {"problem": "a", "answer": "7", "id": 3, "source": "x"}, "image", "a", "7", "3", {"source": "x"}),
    (
        "question",
        {"question": "<image>a", "answer": "\\boxed{\\frac{1}{2}}", "subject": "maths"},
        "image",
        "<image>a",
        "\\frac{1}{2}",
        "0",
        {"subject": "maths"},
    ),
    (
        "question",
        {"question": "a", "answer": "\\boxed{1} + \\boxed{2}"},
        "image",
        "a",
        "\\boxed{1} + \\boxed{2}",
        "0",
        {},
    ),
    (
        "trl",
        {
            "prompt": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [IMAGE_ROW, {"type": "text", "text": "a"}]},
            ],
            "solution": "\\boxed{7}",
        },
        "images",
        "Be brief.\n\n<image>a",
        "7",
        "0",
        {},
    ),
    ("trl", {"prompt": "a", "solution": "\\boxed{8}", "answer": "7"}, "images", "a", "7", "0", {}),
    (
        "verl",
        {
            "prompt": turns(("user", "<image>a")),
            "reward_model": {"style": "rule", "ground_truth": "7"},
            "data_source": "geo",
            "extra_info": {"index": 4},
        },
        "images",
        "<image>a",
        "7",
        "0",
        {"data_source": "geo", "extra_info": {"index": 4}},
    ),
    (
        "sharegpt",
        {"messages": turns(("user", "<image>a"), ("assistant", "7")), "id": "q1"},
        "images",
        "<image>a",
        "7",
        "q1",
        {},
    ),
    (
        "sharegpt",
        {
            "conversations": turns(("human", "<image>a"), ("gpt", "<think>long</think> 7"), names=("from", "value")),
            "solution": "7",
        },
        "image",
        "<image>a",
        "7",
        "0",
        {},
    ),
    (
        "mathvista",
        {
            "pid": "12",
            "question": "Which?",
            "choices": ["red", "blue"],
            "answer": "blue",
            "question_type": "multi_choice",
            "answer_type": "text",
            "unit": None,
            "precision": None,
        },
        "decoded_image",
        "Which?\nA. red\nB. blue",
        "B",
        "12",
        {"question_type": "multi_choice", "answer_type": "text"},
    ),
    (
        "mathvista",
        {
            "pid": "13",
            "question": "How long?",
            "choices": None,
            "answer": "1.2",
            "question_type": "free_form",
            "answer_type": "float",
            "unit": "cm",
            "precision": 1.0,
        },
        "decoded_image",
        "How long? (Unit: cm)\nGive the number with 1 decimal place.",
        "1.2",
        "13",
        {"question_type": "free_form", "answer_type": "float", "precision": 1.0},
    ),
    (
        "mathverse",
        {
            "sample_index": "5",
            "question": "",
            "answer": "C\nD",
            "question_type": "multi-choice",
            "problem_version": "Vision Only",
        },
        "image",
        "Answer the question in the picture.",
        "C, D",
        "5",
        {},
    ),
    (
        "mathverse",
        {
            "sample_index": "6",
            "question": "Find x.",
            "answer": "090^\\circ T",
            "question_type": "free-form",
            "problem_version": "Text Lite",
        },
        "image",
        "Find x.",
        "090^\\circ T",
        "6",
        {},
    ),
    (
        "wemath",
        {"ID": "9", "question": "How far?", "option": "A. 3; 4 cm;B. 5 cm", "answer": "B", "key": "x"},
        "image_path",
        "How far?\nA. 3; 4 cm\nB. 5 cm",
        "B",
        "9/x",
        {"ID": "9", "key": "x"},
    ),
    (
        "wemath",
        {"ID": "9", "question": "How far?", "option": "A. 45° B. 60° ;C. 75°", "answer": "B"},
        "image_path",
        "How far?\nA. 45° B. 60° ;C. 75°",
        "B",
        "9",
        {},
    ),
    (
        "wemath",
        {"ID": "9", "question": "Which?", "option": "A. ①; B．②;C. ③", "answer": "B"},
        "image_path",
        "Which?\nA. ①\nB．②\nC. ③",
        "B",
        "9",
        {},
    ),
    (
        "mathverse",
        {
            "sample_index": 7,
            "question": "Is it so?\nChoices:\nA:True\nB:False",
            "answer": "False",
            "question_type": "multi-choice",
            "problem_version": "Text Lite",
        },
        "image",
        "Is it so?\nChoices:\nA:True\nB:False",
        "B",
        "7",
        {},
    ),
    (
        "mathvision",
        {"question": "From <image1> to <image2>?", "options": ["1", "2"], "answer": "B", "level": 3, "subject": "x"},
        "decoded_image",
        "From (image 1) to (image 2)?\nA. 1\nB. 2",
        "B",
        "0",
        {"level": 3, "subject": "x"},
    ),
    (
        "mathvision",
        {"question": "Which?\n<image1>", "options": ["A", "B"], "answer": "B", "level": 3, "subject": "x"},
        "image",
        "Which?\n<image1>",
        "B",
        "0",
        {},
    ),
    (
        "mathvision",
        {"question": "How far?", "options": [], "answer": "$\\boxed{\\frac{16}{7}}$", "level": 3, "subject": "x"},
        "image",
        "How far?",
        "\\frac{16}{7}",
        "0",
        {},
    ),
    (
        "geometry3k",
        {"id": 11, "problem_text": "Find x.", "annotat_text": "Find $x$.", "choices": ["5", "6"], "answer": "B"},
        "image",
        "Find $x$.\nA. 5\nB. 6",
        "B",
        "11",
        {},
    ),
    (
        "options",
        {"problem": "How many?", "choices": "['2', '3']", "ground_truth": "3"},
        "image_1",
        "How many?\nA. 2\nB. 3",
        "B",
        "0",
        {"ground_truth": "3"},
    ),
    ("question", {"question": "How many?", "ground_truth": 4}, "image_path", "How many?", "4", "0", {}),
    ("easyr1", {"problem": "a", "solution": "<think>b</think> <answer> 3 </answer>"}, "image", "a", "3", "0", {}),
    (
        "logicvista",
        {"id": 2, "question": "Which? A. 1 B. 2", "answer": "A, B", "skill": ["spatial"]},
        "image",
        "Which? A. 1 B. 2",
        "A, B",
        "2",
        {"skill": ["spatial"]},
    ),
    (
        "mmmu_pro",
        {"id": "t1", "options": "['1', '2', \"it's\"]", "answer": "C", "subject": "Art"},
        "image",
        "Answer the question in the picture.",
        "C",
        "t1",
        {"subject": "Art"},
    ),
]


@pytest.mark.parametrize(
    ("name", "row", "column", "problem", "answer", "identifier", "meta"),
    ROWS,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(ROWS)],
)
def test_format_is_recognised_and_read(png, caplog, name, row, column, problem, answer, identifier, meta) -> None:
    cell = [png(5)] if column == "images" else png(5)
    pictures = datasets.Dataset.from_list(
        [{column: cell}], features=datasets.Features({column: datasets.List(IMAGE) if column == "images" else IMAGE})
    )
    dataset = datasets.concatenate_datasets([datasets.Dataset.from_list([row]), pictures], axis=1)
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        canonical = to_canonical(dataset)
    # The project's own format needs no announcement.
    assert [f"read as {name!r}" in message for message in caplog.messages] == [True] * (name != "easyr1")
    check_dataset(canonical)
    for found in (canonical, to_canonical(dataset, name)):
        (read,) = to_prompts(found)
        assert (read["problem"], read["answer"], read["id"]) == (problem, answer, identifier)
        assert {key: value for key, value in read.get("meta", {}).items() if key in meta} == meta
        assert read["images"][0].getpixel((0, 0)) == (5, 5, 5)


def test_numbered_picture_columns_become_one(png) -> None:
    rows = [
        {"id": "a", "question": "See <image 1> and <image 2>.", "options": "['<image 1>', 'none']", "answer": "A"},
        {"id": "b", "question": "See <image 1>.", "options": "['1', '2']", "answer": "B"},
    ]
    pictures = [{"image_1": png(1), "image_2": png(2), "image_3": None}, {"image_1": png(3), "image_2": None}]
    features = datasets.Features({f"image_{number}": IMAGE for number in (1, 2, 3)})
    dataset = datasets.concatenate_datasets(
        [
            datasets.Dataset.from_list([{**row, "subject": "Art"} for row in rows]),
            datasets.Dataset.from_list(pictures, features=features),
        ],
        axis=1,
    )
    first, second = to_prompts(to_canonical(dataset))
    assert first["problem"] == "See <image 1> and <image 2>.\nA. (image 1)\nB. none"
    assert [image.getpixel((0, 0))[0] for image in first["images"]] == [1, 2]
    assert [image.getpixel((0, 0))[0] for image in second["images"]] == [3]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ("[['A', 'B', 'Not enough information']]", "C. Not enough information"),
        ([["A", "B", "Not enough information"]], "C. Not enough information"),
        (list("1234567890ab"), "L. b"),
        ("['C','A']", "B. A"),
    ],
)
def test_options_of_mmmu_pro_may_be_nested_and_go_up_to_l(png, options: Any, last: str) -> None:
    row = {"image": png(), "options": options, "answer": "B", "subject": "Art", "question": "Which?"}
    read = to_canonical(datasets.Dataset.from_list([row]))
    assert (read["problem"][0].splitlines()[-1], read["answer"][0]) == (last, "B")


@pytest.mark.parametrize("answer", ["M", "C", "AB", "none"])
def test_an_answer_that_is_no_option_is_refused(png, answer: str) -> None:
    row = {"image": png(), "options": ["1", "2"], "answer": answer, "subject": "Art", "question": "Which?"}
    with pytest.raises(DataError, match=r"row 0, field 'answer': .* is not one of the 2 options \['A', 'B'\]"):
        to_canonical(datasets.Dataset.from_list([row]))


def test_options_that_the_problem_does_not_show_are_a_warning(caplog) -> None:
    rows = [
        {"question": "Which?", "options": ["red", "blue"], "answer": "A"},
        {"question": "red or blue?", "options": ["red", "blue"], "answer": "A"},
        {"question": "How many?", "options": ["3", "4"], "answer": "3"},
        {"question": "Which?", "options": ["3", "4"], "answer": "(B)"},
    ]
    dataset = datasets.Dataset.from_list([{**row, "image": "a.png"} for row in rows])
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        to_canonical(dataset)
    said = "2 of 4 rows have a letter as answer and options in the column 'options' that are not in the problem"
    assert f"{said} (the first is row 0)" in caplog.text
    caplog.clear()
    assert to_canonical(dataset, "options")["answer"][:] == ["A", "A", "A", "B"]
    assert "not in the problem" not in caplog.text


def test_an_empty_text_is_no_image() -> None:
    rows = [{"question": "a", "answer": "7", "image": path} for path in ("", "a.png")]
    prompts = to_prompts(to_canonical(datasets.Dataset.from_list(rows)), read=str)
    assert [row["images"] for row in prompts] == [[], ["a.png"]]


# Columns under other names


def test_columns_of_a_set_are_read_under_other_names() -> None:
    rows = datasets.Dataset.from_list([{"photo": "a.png", "query": "a", "label": 7, "answer": "because", "level": 3}])
    read = to_canonical(rows, columns={"images": "photo", "problem": "query", "answer": "label"})
    assert read[0] == {"images": "a.png", "problem": "a", "answer": "7", "id": "0", "meta": {"level": 3}}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"anser": "label"}, "columns: no data format has a column 'anser' (did you mean 'answer'?); write"),
        ({"answer": "labels"}, "columns: there is no column 'labels' (did you mean 'label'?) to be read as 'answer'"),
    ],
)
def test_other_names_that_fit_nothing_are_refused(columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_canonical(datasets.Dataset.from_list([{"problem": "a", "label": "7"}]), columns=columns)
    assert message in str(caught.value)


# Faulty rows

FAULTY = [
    {"images": ["a.png"], "prompt": "a", "solution": "7", "id": None},
    {"images": ["b.png"], "prompt": "a", "solution": None, "id": None},
    {"images": ["c.png"], "prompt": "b", "solution": "8", "id": "third"},
    {"images": ["d.png"], "prompt": None, "solution": "8", "id": None},
]


def test_rows_that_cannot_be_read_are_left_out_on_request(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        read = to_canonical(datasets.Dataset.from_list(FAULTY), faulty_rows="drop")
    assert read["images"][:] == [["a.png"], ["c.png"]]
    assert (read["answer"][:], read["id"][:], read["row"][:]) == (["7", "8"], ["0", "third"], [0, 2])
    said = [message for message in caplog.messages if message.startswith("Dropped")]
    assert said == [
        "Dropped 2 of 4 rows, which cannot be read:\n"
        "  row 1, field 'solution': empty; expected a checkable answer in 'solution'. Fill it or drop the row\n"
        "  row 3, field 'prompt': holds no message; expected a list of {role, content}. Fill it or drop the row"
    ]


def test_a_set_of_faulty_rows_alone_is_refused() -> None:
    for rows, policy in ((FAULTY[1:2], "drop"), (FAULTY, "error")):
        with pytest.raises(DataError, match="cannot be read"):
            to_canonical(datasets.Dataset.from_list(rows), "trl", faulty_rows=policy)
    with pytest.raises(DataError, match=r"faulty_rows is 'skip', expected one of \['error', 'drop'\]"):
        to_canonical(datasets.Dataset.from_list(FAULTY), "trl", faulty_rows="skip")


def test_set_without_rows_is_told_as_such() -> None:
    rows = datasets.Dataset.from_list([{"problem": "a", "answer": "7", "images": ["a.png"], "level": 3}])
    with pytest.raises(DataError, match="has no row; expected at least one"):
        to_canonical(rows.select([]))


def test_row_without_a_name_gets_one_that_is_free() -> None:
    rows = [{"id": name, "problem": "a", "answer": "7"} for name in (None, "0", None, "3")]
    assert to_canonical(datasets.Dataset.from_list(rows))["id"][:] == ["row 0", "0", "2", "3"]


@pytest.mark.parametrize(
    "answer", ["\\boxed{ 5 }", " \\boxed{\\frac{1}{2}} ", "\\boxed{1}, \\boxed{2}", "\\boxed{1", "5"]
)
def test_box_around_an_answer_is_that_of_the_rewards(answer: str) -> None:
    canonical = to_canonical(datasets.Dataset.from_list([{"problem": "a", "answer": answer}]))
    assert canonical["answer"][:] == [strip_outer_box(answer)]


def test_pictures_of_columns_that_no_format_names_are_left_out(png) -> None:
    row = {"images": [{"bytes": png(), "path": None}], "problem": "a", "answer": "b", "thumbnail": png(), "level": 3}
    canonical = to_canonical(datasets.Dataset.from_list([row]))
    assert set(canonical.column_names) == {"images", "problem", "answer", "id", "meta"}
    assert canonical[0]["meta"] == {"level": 3}


def test_geometry3k_is_read_without_its_options_on_request() -> None:
    row = {"id": 11, "annotat_text": "Find $x$.", "choices": ["5", "6 \\pi"], "answer": "B"}
    canonical = to_canonical(datasets.Dataset.from_list([row, {**row, "answer": "A"}]), "geometry3k_open")
    assert canonical["problem"][:] == ["Find $x$.", "Find $x$."]
    assert canonical["answer"][:] == ["6 \\pi", "5"]
    with pytest.raises(DataError, match=r"row 0, field 'answer': 'C' is not one of the 2 options \['A', 'B'\]"):
        to_canonical(datasets.Dataset.from_list([{**row, "answer": "C"}]), "geometry3k_open")


def test_every_format_is_tried_in_the_table_above() -> None:
    on_request = {"geometry3k_open"}
    assert {row[0] for row in ROWS} == set(FORMATS) - on_request


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>How many?"}]


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_messages_that_came_as_json_text_are_read(make_dataset, png, column: str) -> None:
    rows = [{"images": [{"bytes": png()}], column: json.dumps(MESSAGES), "answer": "3"}]
    read = to_canonical(datasets.Dataset.from_list(rows))
    assert read["problem"][0] == "Be brief.\n\n<image>How many?"
    for text in ("[3, 4] is a list. Which?", '{"a": 1} has how many keys?', "[", '["user"]'):
        read = to_canonical(datasets.Dataset.from_list([{**rows[0], column: text}]))
        assert read["problem"][0] == text


@pytest.mark.parametrize("name", ["video", "videos", "audio", "audios"])
@pytest.mark.parametrize("value", [["film.mp4"], "film.mp4", {"path": "film.mp4"}, b"film"])
def test_other_media_are_never_left_out_without_a_word(png, name: str, value: Any) -> None:
    row = {"images": [{"bytes": png()}], "problem": "What?", "answer": "3"}
    empty = {list: [], str: "", dict: None, bytes: None}[type(value)]
    said = f"row 1, field '{name}': contains {name.removesuffix('s')}; only images are read"
    with pytest.raises(DataError, match=said):
        to_canonical(datasets.Dataset.from_list([{**row, name: empty}, {**row, name: value}]))
    read = to_canonical(datasets.Dataset.from_list([{**row, name: None}] * 2))
    assert "meta" not in read.column_names
