import json
import socket
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from vgpo.data import DataError, check_dataset, load_dataset, to_prompts


@pytest.fixture
def small(png, make_dataset) -> datasets.Dataset:
    return make_dataset([{"images": [png()], "problem": "<image>How many?", "answer": str(n)} for n in range(3)])


def answers(dataset: datasets.Dataset) -> list[str]:
    return dataset.select_columns(["answer"])["answer"][:]


def test_parquet_file(small, tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    small.to_parquet(str(path))
    for dataset in (load_dataset(str(path)), load_dataset(f"{path}@test"), load_dataset(str(path), "train")):
        check_dataset(dataset)
        assert answers(dataset) == ["0", "1", "2"]
        assert to_prompts(dataset)[2]["images"][0].mode == "RGB"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_file_with_pictures_beside_it(png, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    rows = [{"images": ["a.png"], "problem": "<image>a", "answer": 7}, {"images": [], "problem": "b", "answer": 8}]
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text)
    dataset = load_dataset(str(tmp_path / name))
    check_dataset(dataset)
    assert to_prompts(dataset)[0]["images"][0].getpixel((0, 0)) == (5, 5, 5)
    assert to_prompts(dataset)[1]["images"] == []


def test_saved_folder_and_saved_splits(small, tmp_path: Path) -> None:
    small.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=small, test=small.select([2])).save_to_disk(str(tmp_path / "two"))
    assert answers(load_dataset(str(tmp_path / "one"))) == ["0", "1", "2"]
    assert answers(load_dataset(str(tmp_path / "two"))) == ["0", "1", "2"]
    assert answers(load_dataset(f"{tmp_path / 'two'}@test")) == ["2"]


def test_parquet_folder(small, tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    small.select([1]).to_parquet(str(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet"))
    small.select([0]).to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet"))
    small.select([2]).to_parquet(str(tmp_path / "hub" / "test.parquet"))
    (tmp_path / "plain").mkdir()
    small.to_parquet(str(tmp_path / "plain" / "0000.parquet"))
    assert answers(load_dataset(str(tmp_path / "hub"))) == ["0", "1"]
    assert answers(load_dataset(f"{tmp_path / 'hub'}@test")) == ["2"]
    assert answers(load_dataset(str(tmp_path / "hub"), split="test")) == ["2"]
    assert answers(load_dataset(str(tmp_path / "plain"))) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("source", "split", "asked"),
    [
        ("org/name", None, ("org/name", None, "train")),
        ("org/name@test", None, ("org/name", None, "test")),
        ("org/name", "validation", ("org/name", None, "validation")),
        ("name@test", "test", ("name", None, "test")),
        ("org/name/standard (10 options)@test", None, ("org/name", "standard (10 options)", "test")),
    ],
)
def test_hub_name(small, monkeypatch: pytest.MonkeyPatch, source: str, split: str | None, asked: tuple) -> None:
    calls = []

    def load(name: str, configuration: str | None, split: str) -> datasets.Dataset:
        calls.append((name, configuration, split))
        return small

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert answers(load_dataset(source, split)) == ["0", "1", "2"]
    assert calls == [asked]


def test_hub_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, configuration: str | None, split: str) -> None:
        raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot load the split 'dev' of 'org/name'.* Unknown split \"dev\"") as told:
        load_dataset("org/name@dev")
    assert str(told.value).startswith("there is no file or folder 'org/name' (looked at /")
    assert "or the hub id (a hub id looks like owner/name)" in str(told.value)


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("{folder}/gone.parquet", None, "there is no file or folder '.*gone.parquet'.* correct the path"),
        ("gone.parquet", None, "there is no file or folder 'gone.parquet'"),
        ("{folder}/gone", None, "there is no file or folder '.*gone'"),
        ("./gone@test", None, "there is no file or folder './gone'"),
        ("{folder}/notes.txt", None, "unknown file type '.txt'; expected one of .*parquet"),
        ("{folder}/broken.parquet", None, "cannot read .*broken.parquet"),
        ("{folder}/test.parquet", "dev", "is one file and has no split 'dev'; leave the split out"),
        ("{folder}/empty", None, "contains no parquet file"),
        ("{folder}/hub@dev", None, r"has no split 'dev'; found \['a', 'b'\]. Write .*hub@SPLIT"),
        ("{folder}/hub", None, r"has no split 'train'; found \['a', 'b'\]"),
        ("{folder}/one", "dev", "contains one dataset and has no split 'dev'"),
        ("{folder}/two@dev", None, r"has no split 'dev'; found \['train'\]"),
        ("org/name@test", "dev", "names the split 'test' but split is 'dev'; give one of the two"),
    ],
)
def test_bad_source(small, tmp_path: Path, source: str, split: str | None, message: str) -> None:
    for folder in ("empty", "hub"):
        (tmp_path / folder).mkdir()
    for file in ("test.parquet", "hub/a-0.parquet", "hub/b-0.parquet"):
        small.to_parquet(str(tmp_path / file))
    small.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=small).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "broken.parquet").write_text("a")
    with pytest.raises(DataError, match=message):
        load_dataset(source.format(folder=tmp_path), split)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps({"problem": "<image>a", "answer": "b", **row}) for row in rows))
    return path


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("images", ["a.png"]),
        ("images", "a.png"),
        ("image", "a.png"),
        ("images", [{"path": "a.png"}]),
        ("images", [{"bytes": None, "path": "a.png"}]),
        ("images", ["./deep/../a.png"]),
    ],
)
def test_relative_paths_are_beside_the_file(png, tmp_path: Path, column: str, cell: object) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    (tmp_path / "deep").mkdir()
    dataset = load_dataset(str(write_rows(tmp_path / "rows.jsonl", {column: cell})))
    check_dataset(dataset)
    assert to_prompts(dataset)[0]["images"][0].getpixel((0, 0)) == (5, 5, 5)


def test_absolute_paths_are_taken_as_they_are(png, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "a.png").write_bytes(png(5))
    path = write_rows(tmp_path / "set" / "rows.jsonl", {"images": [str(tmp_path / "a.png")]})
    check_dataset(load_dataset(str(path)))


def test_relative_paths_of_a_saved_set(png, tmp_path: Path) -> None:
    rows = {"images": [["a.png"]], "problem": ["<image>a"], "answer": ["b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "a.png").write_bytes(png(5))
    check_dataset(load_dataset(str(tmp_path / "saved")))


def test_nothing_is_fetched_and_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("a connection was opened"))
    path = write_rows(tmp_path / "rows.jsonl", {"images": [{"path": "https://example.org/a.png"}]})
    with pytest.raises(DataError, match=r"image 0: the image 'https://example.org/a.png' is a web address"):
        check_dataset(load_dataset(str(path)))
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit('run')")
    with pytest.raises(DataError, match="contains no parquet file"):
        load_dataset(str(tmp_path / "scripted"))


@pytest.mark.parametrize("name", ["set[1]", "set*", "set?", "s{1,2}t", "[!a]", "a#b 100%"])
def test_name_is_no_pattern(small, png, tmp_path: Path, name: str) -> None:
    for folder, rows in (("set1", small.select([0])), (name, small.select([2]))):
        place = tmp_path / folder
        place.mkdir()
        rows.to_parquet(place / "train.parquet")
        rows.to_parquet(place / f"{folder}.parquet")
        rows.save_to_disk(place / "saved")
        (place / "a.png").write_bytes(png(5))
        for stem in ("train", folder):
            write_rows(place / f"{stem}.jsonl", {"images": ["a.png"], "answer": rows[0]["answer"]})
    place = tmp_path / name
    sources = (place / "train.parquet", place / f"{name}.parquet", place / "saved", place)
    lines = (place / "train.jsonl", place / f"{name}.jsonl")
    for source in map(str, (*sources, *lines)):
        dataset = load_dataset(source)
        check_dataset(dataset)
        assert answers(dataset) == ["2"]
    assert load_dataset(str(lines[0]))["images"][0] == [str(place / "a.png")]


def test_parquet_file_without_rows_among_others(small, tmp_path: Path) -> None:
    small.to_parquet(tmp_path / "train-1.parquet")
    pq.write_table(pq.read_table(tmp_path / "train-1.parquet").slice(0, 0), tmp_path / "train-0.parquet")
    assert answers(load_dataset(str(tmp_path))) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"train-0.parquet has no row; expected at least one"):
        load_dataset(str(tmp_path / "train-0.parquet"))


def test_pictures_stay_where_they_are_stored(small, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    small.to_parquet(str(path))
    dataset = load_dataset(str(path))
    assert dataset.column_names == ["images", "problem", "answer", "id"]
    assert dataset["id"][:] == ["0", "1", "2"]
    plain = datasets.Dataset.from_parquet(str(path))
    assert dataset.cache_files == plain.cache_files  # the very file, memory-mapped


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("geometry3k.parquet", "geometry3k"),
        ("clevr_count_70k-00000-of-00001.parquet", "clevr_count_70k"),
        ("AI4Math_MathVista-00000-of-00002-a09b74b3ef9c3b56.parquet", "AI4Math_MathVista"),
        ("test_3.parquet", "test"),
    ],
)
def test_split_of_a_file_name_with_digits(small, tmp_path: Path, file: str, split: str) -> None:
    small.to_parquet(str(tmp_path / file))
    small.select([0]).to_parquet(str(tmp_path / "other.parquet"))
    assert len(load_dataset(f"{tmp_path}@{split}")) == 3


def test_paths_may_start_from_the_named_folder(png, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(png(5))
    rows = {"images": [["./data/images/a.png"]], "problem": ["<image>a"], "answer": ["b"]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "data" / "test.parquet"))
    check_dataset(load_dataset(f"{tmp_path}@test"))
