"""Evaluation images in the training set: copies are found whatever file they are in, look-alikes are not."""

import io
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import ExifTags, Image, PngImagePlugin

from vgpo.data import decode_image, image_size, load_dataset, to_prompts
from vgpo.evaluation import leaks
from vgpo.evaluation.leaks import Leak, describe_leaks


def find_leaks(training: Dataset, evaluation: Dataset) -> list[Leak]:
    """Those of one set."""
    return leaks.find_leaks(training, {"test": evaluation}).get("test", [])


def image(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.effect_noise(size, 10 + seed).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rows(*cells: list[bytes], ids: list[str | None] | None = None) -> Dataset:
    columns = {
        "images": [[{"bytes": one, "path": None} for one in cell] for cell in cells],
        "problem": ["What?"] * len(cells),
        "answer": ["1"] * len(cells),
    }
    return Dataset.from_dict(columns | ({} if ids is None else {"id": ids}))


def with_text(image: Image.Image) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "another file")
    return encoded(image, pnginfo=info)


def on_its_side(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


COPIES = {
    "the same bytes": encoded,
    "another compression": lambda one: encoded(one, compress_level=0),
    "another format": lambda one: encoded(one, "BMP"),
    "other metadata": with_text,
    "with an alpha channel": lambda one: encoded(one.convert("RGBA")),
    "stored on its side": on_its_side,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_in_whatever_form_it_is_stored(name: str) -> None:
    copied = image(1)
    copy = COPIES[name](copied)
    training = rows([encoded(image(2))], [encoded(image(3)), copy], [copy])
    evaluation = rows([encoded(image(4))], [encoded(copied)], [])
    assert find_leaks(training, evaluation) == [Leak("1", "1")]
    assert find_leaks(training, rows([encoded(image(4))])) == []


def test_what_only_looks_alike_is_not_counted() -> None:
    copied = image(1)
    turned, smaller = copied.rotate(90, expand=True), copied.resize((20, 15))
    training = rows([encoded(copied, "JPEG")], [encoded(turned)], [encoded(smaller)])
    assert find_leaks(training, rows([encoded(copied)])) == []


def test_blank_images_are_not_counted() -> None:
    blank = encoded(Image.new("RGB", (40, 30), "white"))
    assert find_leaks(rows([blank]), rows([blank])) == []


def test_only_images_of_a_size_in_both_sets_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(leaks, "decode_image", lambda stored: decoded.append(stored) or decode_image(stored))
    shared, other = encoded(image(1)), encoded(image(2, (50, 50)))
    assert find_leaks(rows([shared], [other]), rows([shared], [encoded(image(3, (8, 8)))])) == [Leak("0", "0")]
    assert [one["bytes"] for one in decoded] == [shared, shared]


def test_sets_longer_than_a_batch_keep_their_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(leaks, "ROWS_PER_BATCH", 2)
    files = [encoded(image(seed)) for seed in range(7)]
    training = rows(*([one] for one in files))
    path = tmp_path / "test.parquet"
    rows([files[5]], [encoded(image(9))], [files[0]], ids=["five", "none", None]).to_parquet(str(path))
    evaluation = load_dataset(str(path))
    for sets in ((training, evaluation), (to_prompts(training), to_prompts(evaluation))):
        assert find_leaks(*sets) == [Leak("five", "5"), Leak("2", "0")]


def test_several_sets_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = encoded(image(1)), encoded(image(2, (50, 50)))
    sets = {"one": rows([first]), "two": rows([encoded(image(3))], [second], [first]), "none": rows([])}
    read = []
    monkeypatch.setattr(leaks, "image_size", lambda stored: read.append(stored) or image_size(stored))
    found = leaks.find_leaks(rows([first], [second]), sets)
    assert found == {"one": [Leak("0", "0")], "two": [Leak("1", "1"), Leak("2", "0")]}
    assert len(read) == 2 * (2 + 4)  # each header for its size, and before it is decoded
    assert leaks.find_leaks(rows([first]), {}) == {}


def test_a_sentence_names_the_first() -> None:
    found = [Leak(str(number), f"row {number}") for number in range(7)]
    assert describe_leaks(found, 9) == (
        "7 of 9 questions have an image of the training set: question '0' in training row 'row 0'; question '1' in "
        "training row 'row 1'; question '2' in training row 'row 2'; question '3' in training row 'row 3'; question "
        "'4' in training row 'row 4'; and 2 more"
    )
