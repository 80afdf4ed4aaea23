"""Text of a .jsonl or .json file stays the text that was written."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from vgpo.data import DataError, check_dataset, load_dataset, to_prompts

ROW = {"images": ["a.png"], "problem": "<image>a", "answer": "7"}
# What a reader that guesses types takes for a number, nothing, a truth, a list or a time.
TEXTS = ["007", "null", "true", "[1]", "1e3", "2020-01-01", "2020-01-01T10:00:00Z", '"5"', " 5", "7"]


@pytest.fixture
def write(png, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(5))

    def to_file(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return to_file


@pytest.mark.parametrize("others", [[], [7, 12345678901234567890123, "x"]], ids=["texts", "texts and numbers"])
def test_answers_and_problems_stay_text(write, others: list[Any]) -> None:
    values = [*TEXTS, *others]
    dataset = load_dataset(write(*({**ROW, "problem": str(value), "answer": value} for value in values)))
    assert dataset["answer"][:] == [str(value).strip() for value in values]
    assert dataset["problem"][:] == [str(value) for value in values]


@pytest.mark.parametrize("text", TEXTS)
def test_column_of_one_text_stays_text(write, text: str) -> None:
    row = load_dataset(write({**ROW, "answer": text, "source": text, "id": text}))[0]
    assert (row["answer"], row["id"], row["meta"]) == (text.strip(), text, {"source": text})


def test_turns_stay_text_beside_lists_of_parts(write) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "5"}]
    turns = [("system", "12"), ("user", parts), ("assistant", "5")]
    messages = [{"role": role, "content": content} for role, content in turns]
    dataset = load_dataset(write({"images": ["a.png"], "messages": messages}))
    assert (dataset[0]["problem"], dataset[0]["answer"]) == ("12\n\n<image>5", "5")


def test_pictures_in_every_form(write, png) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png(5)).decode()
    cells = ["a.png", ["a.png"], [uri], uri, {"path": "a.png"}, [{"path": "a.png", "bytes": None}], {"path": uri}]
    dataset = load_dataset(write(*({**ROW, "images": cell} for cell in cells)))
    check_dataset(dataset)
    for row in to_prompts(dataset):
        assert [picture.getpixel((0, 0)) for picture in row["images"]] == [(5, 5, 5)]


def test_numbered_columns_of_paths(write) -> None:
    row = {"question": "<image 1>?", "options": ["1", "2"], "answer": "A", "subject": "Art"}
    pictures = {"image_1": "a.png", "image_2": None}
    dataset = load_dataset(write({**row, **pictures}))
    check_dataset(dataset)
    assert [len(images) for images in dataset["images"]] == [1]


def test_meta_keeps_types_and_is_text_where_they_are_mixed(write) -> None:
    rows = [{"level": 1, "tag": "1", "note": 1}, {"level": 2, "tag": "x", "note": "007"}, {"note": {"a": [None]}}]
    dataset = load_dataset(write(*({**ROW, **row} for row in rows)))
    assert dataset["meta"][:] == [
        {"level": 1, "tag": "1", "note": "1"},
        {"level": 2, "tag": "x", "note": "007"},
        {"level": None, "tag": None, "note": '{"a": [null]}'},
    ]


def test_record_in_meta_stays_a_record_where_one_of_its_fields_is_mixed(write) -> None:
    infos = [{"index": 0, "gold": "05"}, None, {"index": 2, "gold": 5, "more": {"unit": "cm"}}]
    dataset = load_dataset(write(*({**ROW, "extra_info": info} for info in infos)))
    assert [meta["extra_info"] for meta in dataset["meta"]] == [
        {"index": 0, "gold": "05", "more": None},
        None,
        {"index": 2, "gold": "5", "more": {"unit": "cm"}},
    ]


@pytest.mark.parametrize("depth", [30, 40, 100, 500])
def test_meta_of_brackets_in_brackets(write, depth: int) -> None:
    value = json.loads("[" * depth + "]" * depth)
    records = json.loads('{"a": ' * depth + "[1]" + "}" * depth)
    meta = load_dataset(write({**ROW, "deep": value, "records": records}))[0]["meta"]
    assert meta["deep"] == (value if depth < 32 else json.dumps(value))
    for _ in range(min(depth, 32)):
        meta["records"] = meta["records"]["a"]
    assert meta["records"] == [1] if depth < 32 else '{"a": ' in meta["records"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW, ROW]),
        json.dumps([ROW, ROW], indent=1),
        "\ufeff" + json.dumps([ROW, ROW]),
        "\ufeff" + json.dumps(ROW) + "\r\n\r\n" + json.dumps(ROW) + "\r\n",
        json.dumps({**ROW, "problem": "a\u2028\u0085b"}, ensure_ascii=False) + "\n" + json.dumps(ROW),
    ],
    ids=["list", "list on many lines", "list after a mark of order", "lines of Windows", "line ends of Unicode"],
)
def test_layout_of_the_file(write, text: str) -> None:
    path = Path(write(ROW))
    path.write_bytes(text.encode())
    assert len(load_dataset(str(path))) == 2


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_of_rows_by_their_ids(write, indent: int | None) -> None:
    path = Path(write(ROW)).with_suffix(".json")
    path.write_text(json.dumps({"a": ROW, "b": {**ROW, "id": "own"}}, indent=indent))
    assert load_dataset(str(path))["id"][:] == ["a", "own"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rows": [ROW]}, "one object with the keys 'rows'; expected a list of rows, {id: row}, or one row per line"),
        ({"a": ROW, "b": 3}, "one object with the keys 'a', 'b'; expected"),
        ([ROW, 3], "row 1: a int, expected {column: value}"),
    ],
)
def test_other_objects_are_refused_by_what_they_are(write, value: Any, message: str) -> None:
    path = Path(write(ROW)).with_suffix(".json")
    path.write_text(json.dumps(value, indent=1))
    with pytest.raises(DataError) as caught:
        load_dataset(str(path))
    assert message in str(caught.value)


def test_a_folder_of_json_files_and_their_splits(write) -> None:
    path = Path(write(ROW))
    path.rename(path.with_name("test.jsonl"))
    (path.parent / "images").mkdir()
    (path.parent / "images" / "b.png").touch()
    path.with_name("train.json").write_text(json.dumps([{**ROW, "images": ["b.png"]}] * 2))
    train = load_dataset(str(path.parent))
    assert train["images"][:] == [[str(path.parent / "images" / "b.png")]] * 2
    assert len(load_dataset(f"{path.parent}@test")) == 1
    with pytest.raises(DataError, match=r"has no split 'validation'; found \['test', 'train'\]"):
        load_dataset(f"{path.parent}@validation")


@pytest.mark.parametrize("indent", [1, None], ids=["several lines", "one line"])
def test_a_folder_of_one_folder_a_row(tmp_path: Path, png, indent: int | None) -> None:
    for number in (11, 9):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "img_diagram.png").write_bytes(png(number))
        problem = {"id": number, "problem_text": "Find x.", "choices": ["5", "6"], "answer": "B"}
        (folder / "data.json").write_text(json.dumps(problem, indent=indent))
        (folder / "logic_form.json").write_text("{}")
    rows = load_dataset(str(tmp_path))
    check_dataset(rows)
    assert sorted(zip(rows["id"], rows["images"], strict=True)) == [
        (name, [str(tmp_path / name / "img_diagram.png")]) for name in ("11", "9")
    ]


def test_columns_of_json_rows_are_read_under_other_names(write) -> None:
    path = write({"photo": "a.png", "query": "a", "label": "7"})
    rows = load_dataset(path, columns={"images": "photo", "problem": "query", "answer": "label"})
    assert (rows["problem"][0], rows["answer"][0]) == ("a", "7")
    assert rows["images"][:] == [[str(Path(path).parent / "a.png")]]


def test_file_that_was_written_again_is_read_again(write, png) -> None:
    uris = ["data:image/png;base64," + base64.b64encode(png(level)).decode() for level in (5, 6)]
    for uri in uris:
        assert load_dataset(write({**ROW, "images": [uri]}))["images"][:] == [[uri]]


def test_pictures_in_the_file_are_not_held_in_memory(write, png) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png(5)).decode()
    dataset = load_dataset(write({**ROW, "images": [uri]}))
    assert dataset.select_columns(["images"]).cache_files
