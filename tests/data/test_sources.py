import json
from pathlib import Path

import datasets
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
        ("org/name", None, ("org/name", "train")),
        ("org/name@test", None, ("org/name", "test")),
        ("org/name", "validation", ("org/name", "validation")),
        ("name@test", "test", ("name", "test")),
    ],
)
def test_hub_name(small, monkeypatch: pytest.MonkeyPatch, source: str, split: str | None, asked: tuple) -> None:
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: calls.append((name, split)) or small)
    assert load_dataset(source, split) is small
    assert calls == [asked]


def test_hub_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, split: str) -> None:
        raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot load the split 'dev' of 'org/name'.* Unknown split \"dev\""):
        load_dataset("org/name@dev")


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
        ("{folder}/empty", None, "holds no parquet file"),
        ("{folder}/hub@dev", None, r"has no split 'dev'; found \['a', 'b'\]. Write .*hub@SPLIT"),
        ("{folder}/hub", None, r"has no split 'train'; found \['a', 'b'\]"),
        ("{folder}/one", "dev", "holds one data set and has no split 'dev'"),
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
