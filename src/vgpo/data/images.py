"""Read an image in any form in which a dataset may store it."""

import base64
import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.ExifTags
import PIL.Image

from vgpo.data.errors import DataError
from vgpo.data.files import check_regular, expanded, status_of

_LONGEST_PATH = 4096  # characters
MIN_SIDE = 2
MAX_PIXELS = 80_000_000  # below the size at which Pillow warns of decompression bombs
MAX_ASPECT = 200  # at which Qwen's processors reject an image
# Size of 80 million uncompressed RGB pixels, with room for metadata.
MAX_BYTES = 256 * 2**20
# Operation for each EXIF orientation; 1 and unknown values leave the image as stored.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)  # orientations that swap height and width
_SIXTEEN_BIT = ("PNG", "PPM")  # in mode I, Pillow's levels for these formats are 0 to 65,535
_PROGRAMS = ("EPS", "WMF")  # Pillow passes these to another program, which executes their content


def decode_image(value: Any) -> PIL.Image.Image:
    """The image as RGB, upright (EXIF orientation applied), loaded; on white where it is transparent.

    16-bit greyscale becomes 8-bit. value: PIL image, bytes, {"bytes", "path"}, path, or base64 data URI. DataError
    says why it cannot be read.
    """
    image = _open(value)
    with _refusing(value, "cannot be decoded"):
        image.load()
        turn = _TURNS.get(_orientation(image))
        pixels = _rgb(image)
        return pixels if turn is None else pixels.transpose(turn)


def image_digest(image: PIL.Image.Image) -> str:
    """SHA-256 (hex) of the pixels, size and mode of a loaded image, independent of how it was stored."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def image_size(value: Any) -> tuple[int, int]:
    """(height, width) of the upright image in pixels, from its header only. DataError: see `decode_image`."""
    image = _open(value)
    return image.size if _orientation(image) in _SWAPPED else image.size[::-1]


def encoded_image(value: Any) -> dict[str, Any]:
    """{"bytes", "path"} with the stored bytes; PNG of the decoded image where another reader would differ.

    This applies to PIL images, transparent or 16-bit images, and those whose EXIF data cannot be written again, on
    which `PIL.ImageOps.exif_transpose` fails. DataError: see `decode_image`.
    """
    image = _open(value)
    if image is value or image.has_transparency_data or _has_16_bits(image) or not _has_sound_exif(image):
        file = io.BytesIO()
        decode_image(value).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}
    return {"bytes": _encoded(value), "path": None}


def verify_image(value: Any) -> None:
    """Raise DataError whenever `decode_image` would: the image is decoded, a JPEG at 1/8 of its size.

    A cheaper test is not sufficient: checksums and chunks of a PNG or WebP can be valid with too few pixels.
    """
    image = _open(value)
    with _refusing(value, "is damaged"):
        if image is not value:
            image.draft("RGB", (1, 1))  # JPEG only: reads all of its data, at a lower cost
        image.load()
        _rgb(image)


@contextlib.contextmanager
def _refusing(value: Any, what: str) -> Iterator[None]:
    """Convert any error that Pillow raises for an image to a DataError.

    Its readers raise all kinds of errors, from struct.error to RuntimeError. MemoryError passes: the size is checked
    before, so the machine is too small and the image is not wrong.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"the image {_describe(value)} {what} ({reason}); replace or drop it") from error


def _orientation(image: PIL.Image.Image) -> Any:
    """The EXIF orientation, or None: damaged metadata does not mean damaged pixels."""
    try:
        with _refusing(image, "has damaged EXIF data"):
            return _exif(image).get(PIL.ExifTags.Base.Orientation)
    except DataError:
        return None


def _has_sound_exif(image: PIL.Image.Image) -> bool:
    try:
        with _refusing(image, "has damaged EXIF data"):
            return bool(_exif(image).tobytes())
    except DataError:
        return False


def _exif(image: PIL.Image.Image) -> PIL.Image.Exif:
    return PIL.Image.Image.getexif(image)  # the method for PNG files would decode the image


def _open(value: Any) -> PIL.Image.Image:
    """The image with only its header read and its size checked; a PIL image is returned unchanged."""
    image = value if isinstance(value, PIL.Image.Image) else _opened(value)
    width, height = image.size
    too_small, too_large = min(width, height) < MIN_SIDE, width * height > MAX_PIXELS
    if too_small or too_large or max(width, height) >= MAX_ASPECT * min(width, height):
        raise DataError(
            f"the image {_describe(value)} has {width} x {height} pixels; expected sides of at least {MIN_SIDE}, at "
            f"most {MAX_PIXELS:,} pixels, and one side less than {MAX_ASPECT} times the other; resize or replace it"
        )
    if image.mode in ("I", "F") and image.format not in _SIXTEEN_BIT:
        raise DataError(
            f"the image {_describe(value)} has the pixel mode {image.mode!r}, whose value range is undefined; "
            "save it with 8 bits per channel, or as a 16-bit PNG"
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
    """Whether an image from `_open` is 16-bit greyscale."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _opened(value: Any) -> PIL.Image.Image:
    data = _encoded(value)
    try:
        with _refusing(value, "cannot be opened"):
            image = PIL.Image.open(io.BytesIO(data))
    except DataError as error:
        if not isinstance(error.__cause__, PIL.UnidentifiedImageError):
            raise
        raise DataError(
            f"the image {_describe(value)} cannot be opened (not an image format that Pillow knows, or its header "
            "is damaged); replace or drop it"
        ) from error
    if image.format in _PROGRAMS:
        raise DataError(
            f"the image {_describe(value)} is in the format {image.format}, which is a program; save it as PNG"
        )
    return image


def _encoded(value: Any) -> bytes:
    """The bytes of an image that is not a PIL image, at most `MAX_BYTES`."""
    source = _source(value)
    size = _checked_size(source) if isinstance(source, Path) else len(source)
    if size > MAX_BYTES:
        raise DataError(
            f"the image {_describe(value)} is too large ({size:,} bytes, expected at most {MAX_BYTES:,}); resize or "
            "drop it"
        )
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise DataError(
            f"the image file {source} cannot be read ({error.strerror}); correct its permissions, or drop the row"
        ) from error


def _checked_size(path: Path) -> int:
    """The size in bytes of a regular file, without opening it."""
    status = status_of(path)
    if status is None:
        missing = "the link {} does not lead to an image file" if path.is_symlink() else "there is no image file {}"
        raise DataError(f"{missing.format(path)}; correct the path or drop the row")
    check_regular(path, status)
    if status.st_size == 0:  # files in /proc have size 0, and some of them block their reader
        raise DataError(f"the image file {path} is empty; re-create it or drop the row")
    return status.st_size


def _source(value: Any) -> bytes | Path:
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, dict) and value.get("path"):
        value = value["path"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        return _data_uri_bytes(value)
    if isinstance(value, str) and "://" in value:
        raise DataError(f"the image {_describe(value)} is a web address; store its bytes or a local path")
    if isinstance(value, str) and len(value) > _LONGEST_PATH:
        raise DataError(
            f"the image {_describe(value)}... has {len(value)} characters, too long for a path; write base64 as "
            "data:image/png;base64,..."
        )
    if isinstance(value, str | Path):
        return expanded(value)
    raise DataError(
        f"the image {_describe(value)} is of an unknown type; pass a PIL image, bytes, {{'bytes', 'path'}}, a path "
        "or a base64 data URI"
    )


def _data_uri_bytes(uri: str) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise DataError(f"the image {_describe(uri)} is not of the form data:image/...;base64,...")
    if len(payload) // 4 * 3 > MAX_BYTES + 3:
        raise DataError(
            f"the image {_describe(uri)} is too large ({len(payload):,} characters of base64, expected at most "
            f"{MAX_BYTES // 3 * 4:,}); resize or drop it"
        )
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise DataError(f"the image {_describe(uri)} is not valid base64 ({error})") from error


def _describe(value: Any) -> str:
    """A short description of an image for messages."""
    if isinstance(value, dict):
        return f"with path {value.get('path')!r} and {len(value.get('bytes') or b'')} bytes"
    if isinstance(value, bytes):
        return f"of {len(value)} bytes"
    if isinstance(value, str | Path):
        return f"{str(value)[:100]!r}"
    if isinstance(value, PIL.Image.Image):
        return "in memory"
    return f"of type {type(value).__name__}"
