"""Reading one picture from any form in which a data set may hold it."""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from vgpo.data.errors import DataError

# What Pillow raises for bytes that are no picture, are cut short, or unpack to an absurd size.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
)
_LONGEST_PATH = 4096  # characters
MIN_SIDE = 2
MAX_PIXELS = 80_000_000  # below where Pillow begins to warn of decompression bombs
MAX_ASPECT = 200  # at which Qwen's processors refuse a picture
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_SELF_CHECKED = ("PNG", "WEBP")  # Pillow tells a cut file of these from its chunks, undecoded
_JPEG_END = b"\xff\xd9"
_SIXTEEN_BIT = ("PNG", "PPM")  # what Pillow opens in mode I of these has levels of 0 to 65,535


def decode_image(value: Any) -> PIL.Image.Image:
    """The picture as RGB, upright (EXIF orientation applied), loaded; on white where it is transparent.

    16 bits of grey become 8. value: PIL image, bytes, {"bytes", "path"}, path, or base64 data URI. DataError says why
    one cannot be read.
    """
    image = _open(value)
    try:
        return _rgb(PIL.ImageOps.exif_transpose(image))
    except _PILLOW_ERRORS as error:
        raise DataError(f"the picture {_describe(value)} cannot be decoded ({error}); replace or drop it") from error


def image_size(value: Any) -> tuple[int, int]:
    """(height, width) of the upright picture in pixels, from its header alone. DataError as of `decode_image`."""
    image = _open(value)
    try:
        exif = PIL.Image.Image.getexif(image)  # the method of PNG files would decode the picture
    except _PILLOW_ERRORS as error:
        raise DataError(
            f"the picture {_describe(value)} has damaged EXIF data ({error}); replace or drop it"
        ) from error
    return image.size if exif.get(PIL.ExifTags.Base.Orientation) in _TURNED else image.size[::-1]


def encoded_image(value: Any) -> dict[str, Any]:
    """{"bytes", "path"} with the stored bytes; PNG of what `decode_image` gives where another reader would differ.

    That is a PIL image, and a picture that is transparent or of 16 bits. DataError as of `decode_image`.
    """
    image = _open(value)
    if image is value or image.has_transparency_data or _has_16_bits(image):
        file = io.BytesIO()
        decode_image(value).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}
    source = _source(value)
    return {"bytes": source.read_bytes() if isinstance(source, Path) else source.getvalue(), "path": None}


def verify_image(value: Any) -> None:
    """Raise DataError unless the picture opens and is whole; it is decoded only where nothing cheaper tells.

    PNG is judged by its checksums, WebP by its chunks, JPEG by its end marker; other formats are decoded.
    """
    image = _open(value)
    if image is value:
        return
    try:
        _check_whole(image)
    except _PILLOW_ERRORS as error:
        raise DataError(f"the picture {_describe(value)} is damaged ({error}); replace or drop it") from error


def _open(value: Any) -> PIL.Image.Image:
    """The picture with only its header read, of a sane size; a PIL image is returned as it is."""
    image = value if isinstance(value, PIL.Image.Image) else _opened(value)
    width, height = image.size
    too_small, too_large = min(width, height) < MIN_SIDE, width * height > MAX_PIXELS
    if too_small or too_large or max(width, height) >= MAX_ASPECT * min(width, height):
        raise DataError(
            f"the picture {_describe(value)} has {width} x {height} pixels; expected sides of at least {MIN_SIDE}, at "
            f"most {MAX_PIXELS:,} pixels, and one side less than {MAX_ASPECT} times the other; resize or replace it"
        )
    if image.mode in ("I", "F") and image.format not in _SIXTEEN_BIT:
        raise DataError(
            f"the picture {_describe(value)} has the pixel mode {image.mode!r}, which does not say which level is "
            "white; save it with 8 bits a channel, or as a PNG of 16 bits"
        )
    return image


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if _has_16_bits(image):
        grey = image.convert("I").point(lambda level: level * (1 / 257) + 0.5)  # 65,535 is 255
        return grey.convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = PIL.Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _has_16_bits(image: PIL.Image.Image) -> bool:
    """Whether it is grey of 16 bits; for a picture of `_open`."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _opened(value: Any) -> PIL.Image.Image:
    source = _source(value)
    try:
        # Read at once: Pillow keeps the file of a damaged picture open.
        return PIL.Image.open(io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source)
    except FileNotFoundError as error:
        raise DataError(f"there is no picture file {source}; correct the path or drop the row") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"the picture {_describe(value)} cannot be opened (not a picture format that Pillow knows, or its header "
            "is damaged); replace or drop it"
        ) from error
    except _PILLOW_ERRORS as error:
        raise DataError(f"the picture {_describe(value)} cannot be opened ({error}); replace or drop it") from error


def _check_whole(image: PIL.Image.Image) -> None:
    if image.format in _SELF_CHECKED:
        image.verify()
    elif not (isinstance(image, JpegImageFile) and _has_end_marker(image)):
        image.draft("RGB", (1, 1))  # a JPEG without the marker at its end may be whole: decode it at 1/8 of its size
        image.load()


def _has_end_marker(image: JpegImageFile) -> bool:
    if image.fp is None:
        return False
    image.fp.seek(-len(_JPEG_END), io.SEEK_END)
    return image.fp.read() == _JPEG_END


def _source(value: Any) -> io.BytesIO | Path:
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, dict) and value.get("path"):
        value = value["path"]
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, str) and value.startswith("data:"):
        return io.BytesIO(_data_uri_bytes(value))
    if isinstance(value, str) and "://" in value:
        raise DataError(f"the picture {_describe(value)} is a web address; store its bytes or a local path")
    if isinstance(value, str) and len(value) > _LONGEST_PATH:
        raise DataError(
            f"the picture {_describe(value)}... is of {len(value)} characters, too long for a path; write base64 as "
            "data:image/png;base64,..."
        )
    if isinstance(value, str | Path):
        return Path(value).expanduser()
    raise DataError(
        f"the picture {_describe(value)} has no known form; give a PIL image, bytes, {{'bytes', 'path'}}, a path "
        "or a base64 data URI"
    )


def _data_uri_bytes(uri: str) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise DataError(f"the picture {_describe(uri)} is not of the form data:image/...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise DataError(f"the picture {_describe(uri)} is not valid base64 ({error})") from error


def _describe(value: Any) -> str:
    """A short name for a picture in a message."""
    if isinstance(value, dict):
        return f"with path {value.get('path')!r} and {len(value.get('bytes') or b'')} bytes"
    if isinstance(value, bytes):
        return f"of {len(value)} bytes"
    if isinstance(value, str | Path):
        return f"{str(value)[:100]!r}"
    if isinstance(value, PIL.Image.Image):
        return "in memory"
    return f"of type {type(value).__name__}"
