import base64
import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageFile
import pytest

from vgpo.data import DataError, decode_image
from vgpo.data.images import encoded_image, image_size, verify_image


def encoded(mode: str = "RGB", kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, (3, 2), 200).save(file, kind, **options)
    return file.getvalue()


def test_every_form_gives_the_same_rgb_picture(tmp_path: Path) -> None:
    data = encoded("L")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    forms = [
        PIL.Image.open(io.BytesIO(data)),
        data,
        {"bytes": data, "path": None},
        {"bytes": data, "path": "not/there.png"},
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
        str(path),
        path,
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ]
    for form in forms:
        verify_image(form)
        image = decode_image(form)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (200, 200, 200))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG")]
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    assert decode_image(encoded(mode, kind)).mode == "RGB"


WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def transparent(mode: str) -> bytes:
    """Black throughout; the pixels from left to right are opaque, clear and, in modes that can, half clear."""
    file = io.BytesIO()
    if mode == "P":
        picture = PIL.Image.new("P", (3, 2), 0)
        picture.putpalette([0] * 9)
        picture.putdata([0, 1, 1] * 2)
        picture.save(file, "PNG", transparency=1)
        return file.getvalue()
    picture = PIL.Image.new(mode, (3, 2))
    black = (0,) * (len(mode) - 1)
    picture.putdata([(*black, alpha) for alpha in (255, 0, 128)] * 2)
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGBA", [BLACK, WHITE, (127, 127, 127)]),
        ("LA", [BLACK, WHITE, (127, 127, 127)]),
        ("P", [BLACK, WHITE, WHITE]),
    ],
)
def test_transparent_picture_lies_on_white(mode: str, expected: list[tuple[int, int, int]]) -> None:
    data = transparent(mode)
    for picture in (decode_image(data), PIL.Image.open(io.BytesIO(encoded_image(data)["bytes"]))):
        assert (picture.mode, [picture.getpixel((x, 0)) for x in range(3)]) == ("RGB", expected)


def ramp(mode: str) -> PIL.Image.Image:
    """Levels 0, 2,570 and 65,535, which are 0, 10 and 255 in 8 bits."""
    order = "big" if mode == "I;16B" else "little"
    return PIL.Image.frombytes(mode, (3, 2), b"".join(n.to_bytes(2, order) for n in (0, 2570, 65535)) * 2)


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM"), ("I;16", None)]
)
def test_16_bits_become_8(mode: str, kind: str | None) -> None:
    value: object = ramp(mode)
    if kind is not None:
        file = io.BytesIO()
        ramp(mode).save(file, kind)
        value = file.getvalue()
    verify_image(value)
    for picture in (decode_image(value), decode_image(encoded_image(value))):
        assert [picture.getpixel((x, 0)) for x in range(3)] == [BLACK, (10, 10, 10), WHITE]


@pytest.mark.parametrize("mode", ["F", "I"])
@pytest.mark.parametrize("read", [verify_image, decode_image, image_size, encoded_image])
def test_levels_of_unknown_range_are_refused(mode: str, read: Callable[[object], object]) -> None:
    for value in (encoded(mode, "TIFF"), PIL.Image.new(mode, (3, 2))):
        with pytest.raises(DataError, match=rf"has the pixel mode '{mode}', whose .*; save it with 8 bits"):
            read(value)


def test_orientation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode_image(encoded(kind="JPEG", exif=exif)).size == (2, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no picture", r"of 10 bytes cannot be opened \(not an image format .* damaged\); replace"),
        (encoded()[:50], "damaged|cannot be opened"),
        ({"bytes": b"no picture", "path": "a.png"}, "with path 'a.png' and 10 bytes cannot be opened"),
        ({"bytes": None, "path": None}, "is of an unknown type; pass a PIL image, bytes"),
        ("missing.png", "there is no image file missing.png; correct the path"),
        ("https://example.org/a.png", "is a web address; store its bytes or a local path"),
        ("data:image/png,plain", "is not of the form data:image"),
        ("data:image/png;base64,???", "is not valid base64"),
        (5, "of type int is of an unknown type"),
    ],
)
def test_bad_picture_says_why(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify_image(value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_picture_cut_short_is_found_and_fails_when_decoded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    PIL.Image.effect_noise((64, 64), 50).save(path, kind)
    verify_image(path)
    path.write_bytes(path.read_bytes()[:-400])
    for value in (path, path.read_bytes()):
        with pytest.raises(DataError, match=r"damaged|cannot be opened"):
            verify_image(value)
        with pytest.raises(DataError, match=r"cannot be decoded|cannot be opened"):
            decode_image(value)


def test_a_jpeg_is_verified_at_an_eighth_of_its_size_and_may_have_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 48), 50).save(file, "JPEG")
    sizes = []
    load = PIL.ImageFile.ImageFile.load
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: (load(image), sizes.append(image.size))[0])
    verify_image(file.getvalue() + bytes(10))
    assert set(sizes) == {(8, 6)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_size_is_read_upright_and_undecoded(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned, upright = encoded(kind=kind, exif=exif), encoded(kind=kind)
    assert decode_image(turned).size == (2, 3)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert image_size(upright) == (2, 3)
    assert image_size(turned) == (3, 2)
    assert image_size(PIL.Image.new("RGB", (7, 5))) == (5, 7)


def test_stored_bytes_of_every_form(tmp_path: Path) -> None:
    data = encoded()
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for form in (data, {"bytes": data, "path": "a.png"}, str(path), uri):
        assert encoded_image(form) == {"bytes": data, "path": None}
    in_memory = encoded_image(PIL.Image.new("RGB", (4, 4), (1, 2, 3)))
    assert decode_image(in_memory).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (400, 2), (2, 400)])
@pytest.mark.parametrize("read", [verify_image, decode_image, image_size, encoded_image])
def test_absurd_sizes_are_refused(size: tuple[int, int], read: Callable[[object], object]) -> None:
    picture = PIL.Image.new("RGB", size)
    with pytest.raises(
        DataError, match=rf"in memory has {size[0]} x {size[1]} pixels; expected .*; resize or replace"
    ):
        read(picture)


def test_huge_pixel_counts_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpo.data.images.MAX_PIXELS", 5)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for read in (verify_image, decode_image, image_size):
        with pytest.raises(DataError, match="has 3 x 2 pixels; expected sides of at least 2, at most 5 pixels"):
            read(encoded())
