"""A file read while it grows, is cut back, and has an unfinished line: the same as reading it whole every time."""

import json
import random
from pathlib import Path

import pytest

from vgpo.run import RunFolderError, storage
from vgpo.run.storage import append_records, keep_lines, last_complete_line, parse_object, read_lines
from vgpo.run.tail import Tail


class Reader:
    """What a reader that looks at the file now and then holds."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path, parse_object)
        self.records: list[dict] = []
        self.num_read = 0

    def look(self) -> list[dict]:
        for record in self.tail.read(self.records.clear):
            self.records.append(record)
            self.num_read += 1
        return self.records


def write_half_a_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"step": 9')


def test_only_what_was_appended_is_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    reader = Reader(path)
    assert reader.look() == []
    append_records(path, [{"step": 1}, {"step": 2}])
    assert reader.look() == [{"step": 1}, {"step": 2}]
    write_half_a_line(path)
    assert reader.look() == [{"step": 1}, {"step": 2}]
    with path.open("ab") as file:
        file.write(b'}\n{"step": 10}\n')
    assert reader.look() == [{"step": 1}, {"step": 2}, {"step": 9}, {"step": 10}]
    assert reader.num_read == 4


@pytest.mark.parametrize("grown_again", [[], [{"step": 2, "new": True}], [{"step": 2, "new": True}] * 9])
def test_a_file_cut_back_is_read_anew(tmp_path: Path, grown_again: list[dict]):
    path = tmp_path / "metrics.jsonl"
    reader = Reader(path)
    append_records(path, [{"step": 1}, {"step": 2}, {"step": 3}])
    reader.look()
    keep_lines(path, [True, False, False])
    append_records(path, grown_again)
    assert reader.look() == [{"step": 1}, *grown_again]


def test_a_file_that_is_gone_is_empty(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    reader = Reader(path)
    append_records(path, [{"step": 1}])
    reader.look()
    path.unlink()
    assert reader.look() == []
    append_records(path, [{"step": 1}])
    assert reader.look() == [{"step": 1}]


def test_a_broken_line_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    reader = Reader(path)
    append_records(path, [{"step": 1}])
    reader.look()
    with path.open("ab") as file:
        file.write(b"not JSON\n")
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2: not valid JSON"):
            reader.look()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_it_is_as_if_read_whole(tmp_path: Path, seed: int):
    path, draw = tmp_path / "metrics.jsonl", random.Random(seed)
    reader, number = Reader(path), 0
    for _ in range(40):
        event = draw.choice(["append", "append", "half", "cut", "look", "look"])
        if event == "append":
            number += 1
            append_records(path, [{"step": number, "text": "x" * draw.randrange(30)}])
        if event == "half" and path.exists():
            write_half_a_line(path)
        if event == "cut":
            total = len(list(read_lines(path, parse_object)))
            kept = draw.randint(0, total)
            keep_lines(path, [line < kept for line in range(total)])
        if event == "look":
            assert reader.look() == list(read_lines(path, parse_object))


@pytest.mark.parametrize("block", [1, 3, 1 << 16])
@pytest.mark.parametrize(
    "content", [b"", b"a", b"\n", b"a\n", b"a\nb", b"a\nbcd\n", b"a\nbcd\nunfinished", b"\n\n", b"long line\n" * 50]
)
def test_the_last_complete_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int):
    monkeypatch.setattr(storage, "FIRST_BLOCK", block)
    (tmp_path / "lines").write_bytes(content)
    complete = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    expected = (sum(map(len, complete)), complete[-1] if complete else b"")
    assert last_complete_line(tmp_path / "lines") == expected


def test_the_last_line_of_a_large_file_is_found_without_reading_it(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    last = json.dumps({"text": "x" * 100_000}).encode() + b"\n"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no space, and would take minutes to read
        file.seek(0, 2)
        file.write(b"\n" + last)
    assert last_complete_line(path) == (path.stat().st_size, last)
