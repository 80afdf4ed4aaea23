"""The check of an image and its decoding agree on what is damaged: no image that passes can end a run."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from vgpo.data import DataError, decode_image
from vgpo.data.images import encoded_image, image_size, verify_image

WIDTH, HEIGHT = 64, 48


def noise(mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    noise(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(lines: bytes, *, width: int = WIDTH, height: int = HEIGHT, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG with sound chunks around these scanlines, each of which begins with its filter."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + body


def scanlines(filter_byte: int = 0, count: int = HEIGHT, channels: int = 3) -> bytes:
    return (bytes([filter_byte]) + bytes(range(WIDTH)) * channels) * count


def png_of_stream(stream: bytes, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A PNG with sound chunks around this compressed data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def short_png() -> bytes:
    """79 megapixels by its header, of which 100 lines are there."""
    return png_of_stream(zlib.compress(bytes(100 * (1 + 3 * 8900)))[:-8], width=8900, height=8900)


def broken_stream() -> bytes:
    whole = zlib.compress(scanlines(), 0)
    return png_of_stream(whole[:2] + b"\xff" * 5 + whole[7:])


def two_frames(kind: str) -> bytes:
    file = io.BytesIO()
    noise().save(file, kind, save_all=True, append_images=[noise(seed=1)])
    return file.getvalue()


def jpeg_without(marker: int) -> bytes:
    """A JPEG without its segments of one kind, such as its tables."""
    data, at, kept = saved("JPEG"), 2, b"\xff\xd8"
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == marker else data[at:end]
        at = end
    return kept + data[at:]


def jpeg_without_scan() -> bytes:
    data = saved("JPEG")
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


def jpeg_with_second_header() -> bytes:
    data = saved("JPEG")
    middle = data.index(b"\xff\xda") + 200
    return data[:middle] + b"\xff\xd8\xff\xc0" + data[middle + 4 :]


def zeroed(data: bytes, start: float, stop: float) -> bytes:
    first, last = int(len(data) * start), int(len(data) * stop)
    return data[:first] + bytes(last - first) + data[last:]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


PALETTE = chunk(b"PLTE", bytes(3 * 4))

# Whether each of them can be read, which is up to Pillow where it is None.
IMAGES: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    "PNG": (lambda: png(scanlines()), True),
    "PNG of few lines": (short_png, False),
    "PNG of a stream that is cut": (lambda: png_of_stream(zlib.compress(scanlines())[:-20]), False),
    "PNG of a whole stream of few lines": (lambda: png(scanlines(count=10)), None),
    "PNG of a damaged stream": (broken_stream, False),
    "PNG of a filter that does not exist": (lambda: png(scanlines(9)), False),
    "PNG with colours that are not in its palette": (
        lambda: png(scanlines(channels=1), colour=3, extra=PALETTE),
        None,
    ),
    "PNG without its palette": (lambda: png(scanlines(channels=1), colour=3), None),
    "PNG of wrong checksum": (lambda: saved("PNG").replace(b"IDAT", b"IDAT\x00", 1), False),
    "PNG without data": (lambda: png(scanlines()).replace(b"IDAT", b"teXt"), False),
    "PNG with damaged EXIF": (lambda: png(scanlines(), extra=chunk(b"eXIf", b"MM\0*\0\0")), True),
    "PNG with two frames, the second cut": (lambda: two_frames("PNG")[:-5000], None),
    "PNG with text that is too long": (
        lambda: png(scanlines(), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))),
        None,
    ),
    "WebP cut": (lambda: cut(saved("WEBP")), False),
    "WebP with zeros": (lambda: zeroed(saved("WEBP"), 0.1, 0.9), None),
    "lossless WebP with zeros": (lambda: zeroed(saved("WEBP", lossless=True), 0.02, 0.9), None),
    "WebP of two frames with zeros": (lambda: zeroed(two_frames("WEBP"), 0.1, 0.45), None),
    "GIF cut": (lambda: cut(saved("GIF")), False),
    "GIF of two frames, the second cut": (lambda: two_frames("GIF")[:-1000], None),
    "GIF with zeros": (lambda: zeroed(saved("GIF"), 0.5, 0.9), None),
    "BMP cut": (lambda: cut(saved("BMP")), False),
    "TIFF cut": (lambda: cut(saved("TIFF")), False),
    "TIFF of a damaged stream": (lambda: zeroed(saved("TIFF", compression="tiff_adobe_deflate"), 0.1, 0.6), None),
    "TIFF in LAB": (lambda: saved("TIFF", "LAB"), None),
    "JPEG": (lambda: saved("JPEG"), True),
    "JPEG cut": (lambda: cut(saved("JPEG")), False),
    "JPEG without a scan": (jpeg_without_scan, False),
    "JPEG without quantization tables": (lambda: jpeg_without(0xDB), False),
    "JPEG without Huffman tables": (lambda: jpeg_without(0xC4), None),
    "JPEG with a second header": (jpeg_with_second_header, False),
    "JPEG with zeros": (lambda: zeroed(saved("JPEG"), 0.5, 0.9), None),
    "progressive JPEG with zeros": (lambda: zeroed(saved("JPEG", progressive=True), 0.5, 0.9), None),
    "JPEG of CMYK": (lambda: saved("JPEG", "CMYK"), True),
    "MPO": (lambda: two_frames("MPO"), True),
    "MPO cut in its first frame": (lambda: two_frames("MPO")[:2000], False),
    "MPO cut in its second frame": (lambda: two_frames("MPO")[:-500], None),
    "JPEG 2000 cut": (lambda: cut(saved("JPEG2000")), None),
    "TGA cut": (lambda: cut(saved("TGA")), False),
    "PPM cut": (lambda: cut(saved("PPM")), False),
    "PCX cut": (lambda: cut(saved("PCX")), None),
    "ICNS with zeros": (lambda: zeroed(saved("ICNS"), 0.3, 0.6), None),
    "PostScript": (lambda: saved("EPS"), False),
}


def passes(read: Callable[[object], object], data: bytes) -> bool:
    try:
        read(data)
    except DataError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_the_check_refuses_exactly_what_cannot_be_decoded(name: str) -> None:
    make, can_be_read = IMAGES[name]
    data = make()
    assert passes(verify_image, data) == passes(decode_image, data)
    if can_be_read is not None:
        assert passes(verify_image, data) == can_be_read


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "JPEG", "BMP", "MPO"])
def test_the_check_and_decoding_agree_on_random_damage(kind: str) -> None:
    whole = saved(kind) if kind != "TIFF" else saved(kind, compression="tiff_lzw")
    generator = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            data[generator.integers(0, len(data))] = generator.integers(0, 256)
        assert passes(verify_image, bytes(data)) == passes(decode_image, bytes(data))


def test_an_image_in_memory_is_checked_as_it_is_decoded() -> None:
    verify_image(noise())
    assert noise().size == (WIDTH, HEIGHT)
    opened = PIL.Image.open(io.BytesIO(saved("JPEG")))
    verify_image(opened)
    assert opened.size == (WIDTH, HEIGHT)  # and not an eighth of it
    with pytest.raises(DataError, match="in memory is damaged"):
        verify_image(PIL.Image.open(io.BytesIO(cut(saved("PNG")))))


def test_postscript_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("it was run"))
    for read in (verify_image, decode_image, image_size):
        with pytest.raises(DataError, match="is in the format EPS, which is a program; save it as PNG"):
            read(saved("EPS"))


def test_lack_of_memory_is_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: object) -> None:
        raise MemoryError

    data = saved("PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for read in (verify_image, decode_image):
        with pytest.raises(MemoryError):
            read(data)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A block of EXIF data with one directory of (tag, type, count, value)."""
    directory, values = struct.pack("<H", len(entries)), b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(values))
        directory += struct.pack("<HHI", tag, kind, count) + field
        values += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values


def turned(orientation: int, *entries: tuple[int, int, int, bytes]) -> bytes:
    block = exif((0x112, 3, 1, struct.pack("<H", orientation)), *entries)
    return saved("JPEG", exif=block, quality=95, subsampling=0)


ODD_TAGS = {
    "resolution as text": (0x11A, 2, 8, b"72 dpi\0\0"),
    "unit as text": (0x128, 2, 8, b"inches\0\0"),
    "negative width": (0x100, 9, 1, b"\xff\xff\xff\xff"),
    "copyright as a number": (0x8298, 12, 1, struct.pack("<d", 1.5)),
}


@pytest.mark.parametrize("name", ODD_TAGS)
def test_an_odd_exif_tag_does_not_keep_an_image_from_being_read(name: str) -> None:
    data = turned(6, ODD_TAGS[name])
    verify_image(data)
    assert image_size(data) == (WIDTH, HEIGHT)
    assert decode_image(data).size == (HEIGHT, WIDTH)
    written = PIL.Image.open(io.BytesIO(encoded_image(data)["bytes"]))
    assert PIL.ImageOps.exif_transpose(written).size == (HEIGHT, WIDTH)  # as other readers do


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied_as_by_pillow(orientation: int) -> None:
    data = turned(orientation)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert decode_image(data).tobytes() == expected.tobytes()
    assert image_size(data) == (expected.height, expected.width)


def test_exif_data_that_cannot_be_read_leaves_the_image_as_it_is_stored() -> None:
    data = png(scanlines(), extra=chunk(b"eXIf", b"no EXIF data"))
    assert decode_image(data).size == (WIDTH, HEIGHT)
    assert image_size(data) == (HEIGHT, WIDTH)
