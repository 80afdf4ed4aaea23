"""Reading one picture from any form in which a data set may hold it."""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from vgpo.data.errors import DataError

# What Pillow raises for bytes that are no picture, are cut short, or unpack to an absurd size.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)
_SELF_CHECKED = ("PNG", "WEBP")  # Pillow tells a cut file of these from its chunks, undecoded
_JPEG_END = b"\xff\xd9"


def decode_image(value: Any) -> PIL.Image.Image:
    """The picture as RGB, upright (EXIF orientation applied), loaded.

    value: PIL image, bytes, {"bytes", "path"}, path, or base64 data URI. DataError says why one cannot be read.
    """
    image = _open(value)
    try:
        return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except _PILLOW_ERRORS as error:
        raise DataError(f"the picture {_describe(value)} cannot be decoded ({error}); replace or drop it") from error


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
    """The picture with only its header read; a PIL image is returned as it is."""
    if isinstance(value, PIL.Image.Image):
        return value
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
    return f"of type {type(value).__name__}"
