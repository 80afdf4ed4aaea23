"""Images in pages that load nothing: data URIs of bounded size."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

MAX_SIDE = 512  # pixels
MAX_PNG_BYTES = 60_000


def embed_image(folder: Path, name: str) -> dict[str, Any] | None:
    """Return `{"uri", "width", "height"}` of a stored image, at most 512 pixels a side; None if it is lost."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return None
    try:
        with Image.open(path) as stored:
            image = stored.convert("RGBA")
    except (OSError, SyntaxError):  # a disk that failed left a broken file
        return None
    return image_entry(image)


def image_entry(image: Image.Image, max_side: int = MAX_SIDE, max_png_bytes: int = MAX_PNG_BYTES) -> dict[str, Any]:
    """Return `{"uri", "width", "height"}` of an image; JPEG where PNG would be large.

    Args:
        image: In any mode; drawn on white where it is transparent.
        max_side: Longest side on the page, in pixels; smaller images are unchanged.
        max_png_bytes: Largest PNG.
    """
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.convert("RGBA").getchannel("A"))
    page.thumbnail((max_side, max_side))
    kind, data = "png", _encode(page, "PNG")
    if len(data) > max_png_bytes:  # a photograph
        kind, data = "jpeg", _encode(page, "JPEG")
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return {"uri": uri, "width": page.width, "height": page.height}


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=85)
    return buffer.getvalue()
