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


# format, row without its picture, name of the picture column, then problem, answer, id and meta as they are read.
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
        {"question_type": "free_form", "answer_type": "float"},
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
        "9",
        {"key": "x"},
    ),
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


def test_every_format_is_tried_in_the_table_above() -> None:
    assert {row[0] for row in ROWS} == set(FORMATS)


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
    said = f"row 1, field '{name}': holds {name.removesuffix('s')}; only images are read"
    with pytest.raises(DataError, match=said):
        to_canonical(datasets.Dataset.from_list([{**row, name: empty}, {**row, name: value}]))
    read = to_canonical(datasets.Dataset.from_list([{**row, name: None}] * 2))
    assert "meta" not in read.column_names
