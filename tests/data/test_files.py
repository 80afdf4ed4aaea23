"""Anything but a regular file, or a file that is too large, is rejected before it is opened; links and folders are
fine."""

import base64
import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from vgpo.data import DataError, check_dataset, decode_image, load_dataset, template_text, to_prompts
from vgpo.data.images import encoded_image, image_size, verify_image
from vgpo.data.json_rows import json_rows

READERS: list[Callable[[object], object]] = [verify_image, decode_image, image_size, encoded_image]
ROW = {"images": ["a.png"], "problem": "<image>a", "answer": "b"}


real_read, real_open = Path.read_bytes, Path.open


@pytest.fixture
def _unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No special file is opened: that would hang the tests."""

    def read(path: Path) -> bytes:
        assert not special(path), f"{path} was opened"
        return real_read(path)

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        assert not special(path), f"{path} was opened"
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(Path, "open", opened)


def special(path: Path) -> bool:
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps({**ROW, **row}) for row in rows))
    return path


@pytest.mark.usefixtures("_unopened")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a named pipe, expected a regular file"),
        ("socket", "is a socket, expected a regular file"),
        ("folder", "is a folder, expected a regular file"),
        ("/dev/zero", "is a device, expected a regular file"),
        ("/dev/tty", "is a device, expected a regular file"),
    ],
)
def test_an_image_that_is_no_regular_file_is_refused_before_it_is_read(
    tmp_path: Path, kind: str, message: str, linked: bool
) -> None:
    path = make(tmp_path, kind)
    if linked:
        (tmp_path / "link.png").symlink_to(path)
        path = tmp_path / "link.png"
    for read in READERS:
        with pytest.raises(DataError, match=message):
            read(str(path))
    rows = write_rows(tmp_path / "rows.jsonl", {"images": [str(path)]})
    with pytest.raises(DataError, match=f"row 0, field 'images', image 0: {path} {message}"):
        check_dataset(load_dataset(str(rows)))


def make(folder: Path, kind: str) -> Path:
    path = folder / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)  # which must be short
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path(kind)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.png", "image file .*empty.png is empty; re-create it or drop the row"),
        ("/proc/self/status", "image file /proc/self/status is empty"),
        ("lost.png", "the link .*lost.png does not lead to an image file; correct the path or drop the row"),
        ("circle.png", r"cannot access '.*circle.png' \(Too many .*links\); correct the path"),
        ("gone.png", "there is no image file .*gone.png"),
        ("empty.png/a.png", "there is no image file .*a.png"),
        ("a" * 300, r"cannot access '.*' \(File name too long\); correct the path"),
        ("a\0b.png", r"is not a path \(embedded null byte\); correct it"),
        ("~nobody_of_this_name/a.png", "Could not determine home directory.*; write the full path"),
    ],
)
def test_a_path_without_an_image_is_named_with_its_row(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    path = name if name.startswith("~") else str(tmp_path / name)
    for read in READERS:
        with pytest.raises(DataError, match=message):
            read(path)
    if not name.startswith("~"):  # in a dataset, that is a folder beside the file
        rows = write_rows(tmp_path / "rows.jsonl", {"images": [name]})
        with pytest.raises(DataError, match=f"row 0, field 'images', image 0: .*{message}"):
            check_dataset(load_dataset(str(rows)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_that_may_not_be_read_is_named(tmp_path: Path, png) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    path.chmod(0)
    with pytest.raises(DataError, match=r"a.png cannot be read \(Permission denied\); correct its permissions"):
        verify_image(path)


def test_a_denied_image_is_named(tmp_path: Path, png, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())

    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(DataError, match=r"a.png cannot be read \(Permission denied\); correct its permissions"):
        verify_image(path)


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path, png, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(256 * 2**20 + 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
        for read in READERS:
            with pytest.raises(DataError, match=r"too large \(268,435,457 bytes, expected at most 268,435,456\); re"):
                read(huge)
    data = png()
    monkeypatch.setattr("vgpo.data.images.MAX_BYTES", len(data))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for value in (data, {"bytes": data}, uri):
        verify_image(value)
    monkeypatch.setattr("vgpo.data.images.MAX_BYTES", len(data) - 1)
    for value in (data, {"bytes": data}, uri):
        with pytest.raises(DataError, match=f"too large .{len(data)} bytes"):
            verify_image(value)
    monkeypatch.setattr(base64, "b64decode", lambda *args, **kwargs: pytest.fail("it was decoded"))
    monkeypatch.setattr("vgpo.data.images.MAX_BYTES", 30)
    with pytest.raises(DataError, match=r"too large \(\d+ characters of base64, expected at most 40\)"):
        verify_image(uri)


@pytest.mark.usefixtures("_unopened")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "train.parquet"])
def test_a_data_file_that_is_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / f"link.{name.rpartition('.')[2]}").symlink_to(tmp_path / name)
    for source in (tmp_path / name, tmp_path / f"link.{name.rpartition('.')[2]}"):
        with pytest.raises(DataError, match=f"{source} is a named pipe, expected a regular file; name a file"):
            load_dataset(str(source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/zero", "/dev/zero is a device, expected a regular file"),
        ("/" + "a" * 300 + ".jsonl", r"cannot access '/aaa.*' \(File name too long\)"),
        ("a\0b.jsonl", r"'a\[U\+0000\]b.jsonl'|is not a path"),
        ("~nobody_of_this_name/rows.jsonl", "Could not determine home directory"),
        ("~nobody_of_this_name/rows.jsonl@test", "Could not determine home directory"),
    ],
)
def test_a_source_that_cannot_be_looked_at_is_an_error_of_the_data(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(source)


@pytest.fixture
def small(png, make_dataset) -> datasets.Dataset:
    return make_dataset([{"images": [png()], "problem": "<image>How many?", "answer": "1"}])


@pytest.mark.usefixtures("_unopened")
def test_a_pipe_among_the_files_of_a_folder_is_refused(small: datasets.Dataset, tmp_path: Path) -> None:
    small.to_parquet(str(tmp_path / "train-0.parquet"))
    os.mkfifo(tmp_path / "train-1.parquet")
    os.mkfifo(tmp_path / "test.parquet")
    for source, name in ((tmp_path, "train-1"), (f"{tmp_path}@test", "test")):
        with pytest.raises(DataError, match=f"{name}.parquet is a named pipe, expected a regular file"):
            load_dataset(str(source))
    (tmp_path / "train-1.parquet").unlink()
    (tmp_path / "train-1.parquet").symlink_to("gone.parquet")
    with pytest.raises(DataError, match=r"train-1.parquet is a link to a file that does not exist; restore"):
        load_dataset(str(tmp_path))


@pytest.mark.usefixtures("_unopened")
@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
def test_a_pipe_in_a_saved_set_is_refused(
    small: datasets.Dataset, tmp_path: Path, name: str, split: str | None
) -> None:
    saved: datasets.Dataset | datasets.DatasetDict = small if split is None else datasets.DatasetDict({split: small})
    saved.save_to_disk(str(tmp_path / "saved"))
    file = tmp_path / "saved" / (split or "") / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=f"{name} is a named pipe"):
        load_dataset(str(tmp_path / "saved"))


def test_a_template_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    for name in (str(tmp_path / "pipe.jinja"), str(tmp_path)):
        with pytest.raises(DataError, match="there is no prompt template"):
            template_text(name)
    for name in ("a" * 300, "~nobody_of_this_name/a.jinja", "a\0b"):
        with pytest.raises(DataError, match=r"correct|write the full path"):
            template_text(name)


def read_levels(source: object) -> list[int]:
    dataset = load_dataset(str(source))
    check_dataset(dataset)
    return [row["images"][0].getpixel((0, 0))[0] for row in to_prompts(dataset)]


def test_a_link_that_leads_out_of_the_folder_is_refused(png, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (tmp_path / "setting").mkdir()
    for name in ("out/a.png", "out/images/a.png", "set/real.png", "setting/a.png"):
        (tmp_path / name).write_bytes(png(5))
    inside = tmp_path / "set"
    (inside / "a.png").symlink_to(tmp_path / "out" / "a.png")
    (inside / "second.png").symlink_to("a.png")
    (inside / "images").symlink_to("../out/images")
    (inside / "beside.png").symlink_to("../setting/a.png")
    for name in ("a.png", "second.png", "images/a.png", "images/../a.png", "beside.png", "./a.png"):
        rows = write_rows(inside / "rows.jsonl", {"images": ["real.png"]}, {"images": [name]})
        with pytest.raises(DataError) as caught:
            load_dataset(str(rows))
        assert (
            f"row 1, field 'images': the image path '{name}' leads out of the folder of the data file; move the image "
            "into it, or write the absolute path if it is meant"
        ) in str(caught.value)
        assert "row 0" not in str(caught.value)
    absolute = write_rows(inside / "rows.jsonl", {"images": [str(inside / "a.png")]})
    assert read_levels(absolute) == [5]


def test_links_inside_the_folder_and_a_folder_that_is_a_link_are_followed(png, tmp_path: Path) -> None:
    (tmp_path / "real" / "images").mkdir(parents=True)
    (tmp_path / "real" / "images" / "a.png").write_bytes(png(5))
    (tmp_path / "real" / "a.png").symlink_to("images/a.png")
    write_rows(tmp_path / "real" / "rows.jsonl", {}, {"images": ["images/a.png"]})
    (tmp_path / "link").symlink_to("real")
    for folder in ("real", "link"):
        assert read_levels(tmp_path / folder / "rows.jsonl") == [5, 5]


def test_links_of_the_cache_of_the_hub_are_followed_within_their_repository(png, tmp_path: Path) -> None:
    repository, other = tmp_path / "datasets--org--name", tmp_path / "datasets--org--other"
    revision = repository / "snapshots" / "0123abcd"
    for folder in (repository / "blobs", other / "blobs", revision / "data" / "images"):
        folder.mkdir(parents=True)
    for place in (repository / "blobs", other / "blobs"):
        (place / "ffff").write_bytes(png(5))
    write_rows(repository / "blobs" / "eeee", {"images": ["images/a.png"]})
    (revision / "data" / "rows.jsonl").symlink_to("../../../blobs/eeee")
    image = revision / "data" / "images" / "a.png"
    image.symlink_to("../../../../blobs/ffff")
    assert read_levels(revision / "data" / "rows.jsonl") == [5]
    for target in (other / "blobs" / "ffff", repository / "secret"):
        (repository / "secret").write_bytes(png(5))
        image.unlink()
        image.symlink_to(target)
        with pytest.raises(DataError, match=r"'images/a.png' leads out of the folder of the data file"):
            load_dataset(str(revision / "data" / "rows.jsonl"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "saved"])
def test_images_are_found_after_a_change_of_the_working_directory(
    png, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = tmp_path / "set"
    place.mkdir()
    (place / "a.png").write_bytes(png(5))
    dataset = datasets.Dataset.from_list([ROW])
    source = {"jsonl": "set/rows.jsonl", "parquet": "set/train.parquet", "folder": "set", "saved": "set"}[kind]
    if kind == "jsonl":
        write_rows(place / "rows.jsonl", {})
    elif kind == "saved":
        dataset.save_to_disk(str(place))
    else:
        dataset.to_parquet(str(place / "train.parquet"))
    monkeypatch.chdir(tmp_path)
    loaded = load_dataset(source)
    monkeypatch.chdir("/")
    check_dataset(loaded)
    assert loaded["images"][:] == [[str(place / "a.png")]]


@pytest.mark.parametrize("listed", [False, True])
def test_a_relative_path_among_stored_images_is_refused(png, tmp_path: Path, listed: bool) -> None:
    stored = {"bytes": png(5), "path": "a.png"}
    for path, fits in ((str(tmp_path / "a.png"), True), ("a.png", False)):
        cells = [stored, stored, {"bytes": None, "path": path}]
        rows = [{**ROW, "images": [cell] if listed else cell} for cell in cells]
        (tmp_path / "a.png").write_bytes(png(5))
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
        if fits:
            assert read_levels(tmp_path / "train.parquet") == [5, 5, 5]
            continue
        with pytest.raises(DataError, match=r"row 2, field 'images': the image path 'a.png' is relative and has no b"):
            load_dataset(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"answer": "1", "problem": "a", "answer": "2"}', "rows.jsonl, line 2: the key 'answer' occurs twice; rem"),
        ('{"answer": "1", "meta": {"a": [{"b": 1, "b": 1}]}}', "rows.jsonl, line 2: the key 'b' occurs twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + text)
    with pytest.raises(DataError, match=message):
        load_dataset(str(path))


def test_a_key_that_is_there_twice_in_a_list_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"answer": "1", "answer": "2"}]')
    with pytest.raises(DataError, match=r"rows.json: the key 'answer' occurs twice; remove one of the two values"):
        load_dataset(str(path))


def test_a_line_beyond_the_limit_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps(ROW) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_text(line + line.replace('"b"', f'"{"b" * 100}"'))
    monkeypatch.setattr("vgpo.data.json_rows._LONGEST_LINE", len(line) + 99)
    assert len(list(json_rows(path))) == 2
    monkeypatch.setattr("vgpo.data.json_rows._LONGEST_LINE", len(line))
    with pytest.raises(
        DataError, match=r"line 2: more than \d+ bytes; write one row per line, and its images to files"
    ):
        list(json_rows(path))


def test_a_list_of_rows_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, ROW], indent=1))
    size = path.stat().st_size
    monkeypatch.setattr("vgpo.data.json_rows._LONGEST_LINE", 5)  # of lines; a list may have longer ones
    monkeypatch.setattr("vgpo.data.json_rows._LARGEST_LIST", size)
    assert len(list(json_rows(path))) == 2
    monkeypatch.setattr("vgpo.data.json_rows._LARGEST_LIST", size - 1)
    with pytest.raises(DataError, match=rf"one value of {size} bytes, .* at most {size - 1}. Write one row per line"):
        list(json_rows(path))
