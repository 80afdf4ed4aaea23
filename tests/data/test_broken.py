"""Every kind of broken input ends in one error that names the place, the field and the fix."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest

from vgpo.data import DataError, check_dataset, load_dataset, to_prompts

Row = dict[str, Any]


def picture(kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    PIL.Image.effect_noise(size, 40).save(file, kind)
    return file.getvalue()


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def levels() -> bytes:
    """An image of floating-point numbers."""
    file = io.BytesIO()
    PIL.Image.new("F", (4, 4), 0.5).save(file, "TIFF")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header alone says 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


SOUND = {"images": ["a.png"], "problem": "<image>How many?", "answer": "7"}
QUESTION = {"image": "a.png", "question": "Which?"}
VISTA = {**QUESTION, "choices": ["red", "blue"], "question_type": "multi_choice", "answer_type": "text"}
SHARE = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>Which?"}]}
VERL = {"images": ["a.png"], "prompt": [{"role": "user", "content": "<image>Which?"}]}
TRL = {"images": ["a.png"], "solution": "7"}


# What is written as row 1, beside a sound row 0 of the same format, and what the error must hold.
BROKEN_ROWS: list[tuple[str, Row, Row, list[str]]] = [
    ("empty problem", SOUND, {"problem": " "}, ["field 'problem'", "empty", "drop the row"]),
    ("empty answer", SOUND, {"answer": ""}, ["field 'answer'", "empty", "Fill it"]),
    ("null answer", SOUND, {"answer": None}, ["field 'answer'", "empty", "Fill it"]),
    (
        "marks without pictures",
        SOUND,
        {"images": []},
        ["field 'problem'", "1 <image> placeholder but 0", "Correct the placeholders"],
    ),
    (
        "fewer marks",
        SOUND,
        {"images": ["a.png"] * 3},
        ["1 <image> placeholder but 3", "placeholders or the images"],
    ),
    (
        "gap in the numbers",
        SOUND,
        {"images": ["a.png"] * 2, "problem": "<image 1> or <image 3>?"},
        ["field 'problem'", "<image 1>, <image 3>", "each number from 1 to 2 once"],
    ),
    (
        "numbers and none",
        SOUND,
        {"images": ["a.png"] * 2, "problem": "<image> or <image 2>?"},
        ["the placeholders are <image>, <image 2>", "Correct the placeholders"],
    ),
    (
        "no such file",
        SOUND,
        {"images": ["gone.png"]},
        ["field 'images', image 0", "no image file", "correct the p"],
    ),
    ("path that leads out", SOUND, {"images": ["../a.png"]}, ["field 'images'", "'../a.png' leads out", "absolute"]),
    ("hidden way out", SOUND, {"images": ["b/../../a.png"]}, ["field 'images'", "leads out", "move the image"]),
    ("web address", SOUND, {"images": ["https://example.org/a.png"]}, ["image 0", "web address", "store its bytes"]),
    ("data URI of no base64", SOUND, {"images": ["data:image/png;base64,?"]}, ["image 0", "not valid base64"]),
    ("data URI of another kind", SOUND, {"images": ["data:text/plain,a"]}, ["image 0", "not of the form data:"]),
    (
        "base64 alone",
        SOUND,
        {"images": ["iVBORw0K" * 600]},
        ["image 0", "/iVBORw0K", "too long for a path; write base64 as data:image/png;base64,"],
    ),
    ("long name", SOUND, {"images": ["a" * 300]}, ["image 0", "File name too long", "correct the path"]),
    ("cut JPEG", SOUND, {"images": [uri(picture()[:-400])]}, ["image 0", "damaged", "replace or drop it"]),
    (
        "one pixel",
        SOUND,
        {"images": [uri(picture("PNG", (1, 1)))]},
        ["image 0", "1 x 1 pixels", "resize or replace"],
    ),
    ("too flat", SOUND, {"images": [uri(picture("PNG", (800, 4)))]}, ["image 0", "800 x 4", "less than 200 times"]),
    (
        "levels without a range",
        SOUND,
        {"images": [uri(levels())]},
        ["image 0", "mode 'F', whose value range is undefined", "save it with 8 bits"],
    ),
    ("bomb", SOUND, {"images": [uri(bomb())]}, ["image 0", "pixels", "replace"]),
    ("same id", {**SOUND, "id": "x"}, {}, ["field 'id'", "'x' is also the id of row 0", "give each row its own"]),
    (
        "answer is no choice",
        {**VISTA, "answer": "red"},
        {"answer": "green"},
        ["field 'answer'", "'green' is not one of the choices ['red', 'blue']", "correct it"],
    ),
    (
        "one choice",
        {**VISTA, "answer": "red"},
        {"choices": ["red"]},
        ["field 'choices'", "1 option, expected 2 to 12"],
    ),
    (
        "letter beyond the options",
        {**QUESTION, "options": "['1', '2', '3']", "subject": "Art", "answer": "C"},
        {"answer": "D"},
        ["field 'answer'", "'D' is not one of the 3 options ['A', 'B', 'C']", "correct it"],
    ),
    (
        "options that are not a list",
        {**QUESTION, "options": "['1', '2']", "subject": "Art", "answer": "A"},
        {"options": "__import__('os')"},
        ["field 'options'", "not a Python list", "correct it or drop the row"],
    ),
    (
        "reference answer that is not an option",
        {**QUESTION, "option": "A. 1; B. 2", "answer": "A"},
        {"option": "A. 1; C. 2", "answer": "B"},
        ["field 'answer'", "'B' is not one of the options ['A', 'C']", "correct it"],
    ),
    (
        "no assistant turn",
        {**SHARE, "conversations": [*SHARE["conversations"], {"from": "gpt", "value": "7"}]},
        SHARE,
        ["field 'conversations'", "no assistant turn", "column 'answer'"],
    ),
    (
        "no message",
        {**SHARE, "answer": "7"},
        {"conversations": []},
        ["field 'conversations'", "no message", "drop the"],
    ),
    (
        "two questions",
        {**SHARE, "answer": "7"},
        {"conversations": SHARE["conversations"] * 2},
        ["field 'conversations'", "2 user turns, expected 1", "Shorten the dialogue"],
    ),
    (
        "unknown role",
        {**SHARE, "answer": "7"},
        {"conversations": [{"from": "robot", "value": "a"}]},
        ["field 'conversations'", "role 'robot', expected one of"],
    ),
    (
        "no ground truth",
        {**VERL, "reward_model": {"ground_truth": "7"}},
        {"reward_model": {"ground_truth": None}},
        ["field 'reward_model.ground_truth'", "missing", "Fill it or drop the row"],
    ),
    (
        "part of another kind",
        {**TRL, "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]},
        {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        ["field 'prompt'", "'video' without text, expected 'text' or 'image'"],
    ),
    (
        "assistant turn in a prompt",
        {**TRL, "prompt": [{"role": "user", "content": "<image>a"}]},
        {"prompt": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "7"}]},
        ["field 'prompt'", "an assistant turn", "Remove it"],
    ),
    (
        "assistant turn before the question",
        {**SHARE, "answer": "7"},
        {"conversations": [{"from": "gpt", "value": "Hello."}, *SHARE["conversations"]]},
        ["field 'conversations'", "an assistant turn", "Remove it"],
    ),
    (
        "number as a picture",
        SOUND,
        {"images": [5]},
        ["field 'images', image 0", "no image file", "/5; correct the path"],
    ),
    (
        "no solution",
        {**TRL, "prompt": "<image>a"},
        {"solution": None},
        ["field 'solution'", "empty; expected a checkable answer in 'solution'", "Fill it or dr"],
    ),
]


def write_jsonl(folder: Path, *rows: Row) -> Path:
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(picture("PNG"))
    (folder / "a.png").write_bytes(picture("PNG"))
    path = folder / "set" / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("sound", "changes", "expected"), [row[1:] for row in BROKEN_ROWS], ids=[row[0] for row in BROKEN_ROWS]
)
def test_broken_row(tmp_path: Path, sound: Row, changes: Row, expected: list[str]) -> None:
    sound_path = write_jsonl(tmp_path, sound)
    check_dataset(load_dataset(str(sound_path)))
    path = sound_path.with_name("broken.jsonl")
    path.write_text("\n".join(map(json.dumps, [sound, {**sound, **changes}])))
    with pytest.raises(DataError) as caught:
        check_dataset(load_dataset(str(path)))
    for part in ["row 1, field", *expected]:
        assert part in str(caught.value)
    assert "row 0, field" not in str(caught.value)


BROKEN_SETS: list[tuple[str, Callable[[Row], Any], list[str]]] = [
    (
        "no answer column",
        lambda row: {"images": row["images"], "problem": "a"},
        ["no column 'answer'", "Add it, or name"],
    ),
    (
        "misnamed column",
        lambda row: {"images": ["a.png"], "problems": "a", "answer": "b"},
        ["did you mean 'problems'?"],
    ),
    ("no pictures column", lambda row: {"problem": "a", "answer": "b"}, ["no column 'images'", "Add it, or name"]),
    (
        "number as problem",
        lambda row: {**row, "problem": 5},
        ["row 0, field 'problem'", "type int", "Write it as text"],
    ),
    (
        "list as answer",
        lambda row: {**row, "answer": ["b"]},
        ["row 0, field 'answer'", "type list", "Write it as text"],
    ),
    (
        "truth as answer",
        lambda row: {**row, "answer": True},
        ["row 0, field 'answer'", "type bool", "Write it as text"],
    ),
    (
        "no picture at all",
        lambda row: {**row, "images": [], "problem": "a"},
        ["no row of the dataset has an image"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), [row[1:] for row in BROKEN_SETS], ids=[row[0] for row in BROKEN_SETS])
def test_broken_set(tmp_path: Path, change: Callable[[Row], Row], expected: list[str]) -> None:
    path = write_jsonl(tmp_path, change(SOUND))
    with pytest.raises(DataError) as caught:
        check_dataset(load_dataset(str(path)))
    for part in expected:
        assert part in str(caught.value)


def test_no_rows_unknown_split_and_unknown_format(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, SOUND)
    with pytest.raises(DataError, match="has no row; expected at least one"):
        check_dataset(load_dataset(str(path)).select([]))
    with pytest.raises(DataError, match="has no split 'dev'; leave the split out"):
        load_dataset(f"{path}@dev")
    with pytest.raises(DataError, match=r"no data format 'easyrl' \(did you mean 'easyr1'\?\); the formats are"):
        load_dataset(str(path), format="easyrl")
    with pytest.raises(DataError, match=r"no data format 'zzz'.* leave it out"):
        load_dataset(str(path), format="zzz")
    with pytest.raises(DataError, match="no column 'prompt'"):
        load_dataset(str(path), format="verl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "a",', r"rows\.jsonl, line 3: not valid JSON .* line 1 column 17 .*; correct it"),
        ("7", "line 3: a int, expected {column: value}; correct it"),
        ('{"problem": "\\ud800"}', "line 3: not UTF-8 .*surrogates not allowed"),
        (
            '{"problem": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 3: brackets are nested too deeply; correct it",
        ),
    ],
)
def test_line_that_is_no_row(tmp_path: Path, line: str, message: str) -> None:
    path = write_jsonl(tmp_path, SOUND, SOUND)
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(DataError, match=message):
        load_dataset(str(path))


def test_file_of_another_encoding(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, SOUND)
    path.write_bytes(path.read_bytes() + '\n{"problem": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: not UTF-8 .*; save the file as UTF-8"):
        load_dataset(str(path))


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = write_jsonl(tmp_path, SOUND)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*rows\.jsonl: .*Permission denied.*; correct its permissions"):
        load_dataset(str(path))


def test_disk_that_takes_no_names_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path, SOUND)
    (tmp_path / "cache").write_text("a file where a folder is expected")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"cannot cache the image names .*rows\.jsonl on disk: .*cache"):
        load_dataset(str(path))


def test_list_with_what_is_no_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, SOUND)
    path.write_text(json.dumps([SOUND, "a"]))
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: a str, expected \{column: value\}"):
        load_dataset(str(path))


def test_template_with_an_unknown_variable(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ problem }} {{ hint }}")
    with pytest.raises(DataError, match=r"uses the variables \['hint', 'problem'\]; expected exactly \['problem'\]"):
        to_prompts(load_dataset(str(write_jsonl(tmp_path, SOUND))), str(template))


def test_empty_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path)
    with pytest.raises(DataError, match=r"rows\.jsonl has no row; expected at least one"):
        load_dataset(str(path))
    datasets.Dataset.from_dict({"images": [], "problem": [], "answer": []}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet has no row; expected at least one"):
        load_dataset(str(tmp_path / "none.parquet"))


def test_answers_of_bytes(tmp_path: Path) -> None:
    rows = {"images": [["a.png"]], "problem": ["a"], "answer": [b"7"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 0, field 'answer': is of type bytes, expected text or an integer"):
        load_dataset(str(tmp_path / "rows.parquet"))


def test_saved_folders_that_are_none(tmp_path: Path) -> None:
    for name in ("cut", "foreign", "empty"):
        (tmp_path / name).mkdir()
    datasets.Dataset.from_list([SOUND]).save_to_disk(tmp_path / "cut")
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:50])
    (tmp_path / "foreign" / "state.json").write_text("{}")
    datasets.Dataset.from_dict({"images": [], "problem": [], "answer": []}).save_to_disk(tmp_path / "empty")
    for name, reason in (("cut", "Expected to read"), ("foreign", "neither"), ("empty", "no rows were saved")):
        with pytest.raises(DataError, match=rf"cannot read .*/{name}, which looks like .*{reason}.*; save it again"):
            load_dataset(str(tmp_path / name))


def test_parquet_file_with_a_column_more_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list([SOUND]).to_parquet(tmp_path / "train-0.parquet")
    datasets.Dataset.from_list([{**SOUND, "level": 1}]).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"cannot read .*train-1.parquet: .*'level'.* those of .*train-0.parquet"):
        load_dataset(str(tmp_path))


def test_text_of_a_set_does_not_steer_the_terminal(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {**SOUND, "images": ["\x1b[2J\u202e.png"]})
    with pytest.raises(DataError, match=r"set/\[U\+001B\]\[2J\[U\+202E\]\.png; correct the path"):
        check_dataset(load_dataset(str(path)))
