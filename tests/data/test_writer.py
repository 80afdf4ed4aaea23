import datasets
from trl import prepare_multimodal_messages

from vgpo.data import check_dataset, load_dataset, to_prompts, write_trl
from vgpo.data.readers import to_canonical


def test_trl_columns_and_back(png, make_dataset, tmp_path) -> None:
    rows = [
        {"images": [png(1), png(2)], "problem": "<image 2> or <image 1>?", "answer": "2 \\sqrt{3}"},
        {"images": [png(3)], "problem": "Which?", "answer": "B"},
        {"images": [], "problem": "text only", "answer": "7"},
    ]
    canonical = to_canonical(make_dataset(rows))
    path = write_trl(canonical, tmp_path / "trl.parquet", template="think_boxed")

    stored = datasets.Dataset.from_parquet(str(path))
    assert stored.column_names == ["prompt", "images", "solution", "answer", "id"]
    assert stored["solution"][:] == ["\\boxed{2 \\sqrt{3}}", "\\boxed{B}", "\\boxed{7}"]
    first = stored[0]
    (message,) = prepare_multimodal_messages(first["prompt"], images=first["images"])
    assert [part["type"] for part in message["content"]] == ["image", "text", "image", "text"]
    assert [image.getpixel((0, 0)) for image in first["images"]] == [2, 1]  # in the order of their marks

    read = load_dataset(str(path))
    check_dataset(read)
    before, after = to_prompts(canonical, "think_boxed"), to_prompts(read)
    for old, new in zip(before, after, strict=True):
        assert (old["answer"], old["id"]) == (new["answer"], new["id"])
        assert [image.tobytes() for image in old["images"]] == [image.tobytes() for image in new["images"]]
    kinds = [[part["type"] for part in row["prompt"][0]["content"]] for row in after]
    assert kinds == [["image", "text", "image", "text"], ["image", "text"], ["text"]]


def test_stored_bytes_are_kept_and_paths_are_read(png, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    rows = [
        {"images": [{"bytes": png(5), "path": "x.png"}]},
        {"images": [{"bytes": None, "path": str(tmp_path / "a.png")}]},
    ]
    dataset = to_canonical(datasets.Dataset.from_list([{**row, "problem": "<image>a", "answer": "b"} for row in rows]))
    stored = datasets.Dataset.from_parquet(str(write_trl(dataset, tmp_path / "trl.parquet")))
    undecoded = stored.cast_column("images", datasets.List(datasets.Image(decode=False)))
    assert [row["images"][0]["bytes"] for row in undecoded] == [png(5), png(9)]
