"""Prompts as messages of inspect-ai, and messages as the prompts that a checkpoint is trained with."""

import base64
from typing import Any

from inspect_ai.model import ChatMessage, Content, ContentImage, ContentText

from vgpo.data import DataError, decode_image
from vgpo.data.images import encoded_image

PAPO = "papo"  # the form of rows whose instruction is in the question
PLAIN, THINK_BOXED = "plain", "think_boxed"

Row = dict[str, Any]


class ProviderError(ValueError):
    """A request that a checkpoint in this process cannot answer."""


def content_of(row: dict[str, Any]) -> list[Content]:
    """The user turn of a row of `to_prompts` whose images are data URIs."""
    images = iter(row["images"])
    (message,) = row["prompt"]
    return [
        ContentImage(image=next(images)) if part["type"] == "image" else ContentText(text=part["text"])
        for part in message["content"]
    ]


def as_data_uri(image: Any) -> str:
    """An image of a dataset as every provider takes it, with the bytes that are stored."""
    data = encoded_image(image)["bytes"]
    return f"data:image/{kind_of(data)};base64,{base64.b64encode(data).decode('ascii')}"


def kind_of(data: bytes) -> str:
    """The subtype of `image/...` of an encoded image, by its first bytes."""
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}
    found = next((name for start, name in starts.items() if data.startswith(start)), None)
    return found or ("webp" if data[8:12] == b"WEBP" else "png")


def row_of(messages: list[ChatMessage]) -> Row:
    """Messages as a row of `vgpo.data.to_prompts`: images beside the messages, decoded as training decodes them.

    Raises:
        ProviderError: A message holds something else than text and images, or an image cannot be read.
    """
    images: list[Any] = []
    prompt = []
    for message in messages:
        content = [ContentText(text=message.content)] if isinstance(message.content, str) else message.content
        parts = []
        for part in content:
            if isinstance(part, ContentText):
                parts.append({"type": "text", "text": part.text})
            elif isinstance(part, ContentImage):
                parts.append({"type": "image"})
                images.append(part.image)
            else:
                raise ProviderError(f"a {message.role} message holds {part.type!r}, expected text or images")
        prompt.append({"role": message.role, "content": parts})
    try:
        return {"prompt": prompt, "images": [decode_image(image) for image in images]}
    except DataError as error:
        raise ProviderError(str(error)) from error
