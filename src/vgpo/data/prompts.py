"""Prompts from rows: a template around the problem, images at their `<image>` marks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import datasets

from vgpo.data.errors import DataError
from vgpo.data.images import decode_image
from vgpo.data.rendering import compiled, render, template_text
from vgpo.data.schema import ANSWER, ID, IMAGE_MARK, IMAGES, META, PROBLEM, as_list, check_columns, mark_fault


def to_prompts(
    dataset: datasets.Dataset, template: str = "plain", read: Callable[[Any], Any] = decode_image
) -> datasets.Dataset:
    """`dataset` with rows as TRL takes them, built when a row is read.

    A row is {"prompt": [{"role": "user", "content": [parts]}], "images": [RGB images], "problem": str,
    "answer": str}; parts are {"type": "image"} and {"type": "text", "text": str} in the order of the problem's
    `<image>` marks, or images first if it has no marks. `problem`, and `id` and `meta` if present, are unchanged.
    template: "plain", "think_boxed", or the path of a jinja file with the variable `problem`.
    read: applied to each image; with `image_size` no image is decoded. DataError for an invalid template immediately,
    for an invalid row when it is read (run `check_dataset` first).
    """
    check_columns(dataset)
    columns = [name for name in (IMAGES, PROBLEM, ANSWER, ID, META) if name in dataset.column_names]
    text = template_text(template)
    compiled(text)
    prompts = dataset.select_columns(columns).with_transform(_PromptTransform(text, read))
    # Undecoded, so that decode_image reports a bad image with its problem; the stored data is the same.
    prompts.info.features = datasets.Features(
        {name: _undecoded(feature) for name, feature in dataset.features.items() if name in columns}
    )
    return prompts


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return replace(feature, decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


@dataclass(frozen=True)
class _PromptTransform:
    """Turns a batch of columns into a batch of prompts; has only text and a public function, so that it pickles."""

    template: str
    read: Callable[[Any], Any]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        problems = batch[PROBLEM]
        images = batch[IMAGES] if IMAGES in batch else [[]] * len(problems)
        rows = [self._row(problem, as_list(cell)) for problem, cell in zip(problems, images, strict=True)]
        return {
            "prompt": [[{"role": "user", "content": content}] for content, _ in rows],
            IMAGES: [loaded for _, loaded in rows],
            PROBLEM: problems,
            ANSWER: [str(answer) for answer in batch[ANSWER]],
            **{name: batch[name] for name in (ID, META) if name in batch},
        }

    def _row(self, problem: str, images: list[Any]) -> tuple[list[dict[str, str]], list[Any]]:
        text = render(self.template, problem)
        marks = list(IMAGE_MARK.finditer(text))
        if fault := mark_fault(text, len(images)):
            raise DataError(f"{fault} (row with the problem {problem[:80]!r})")
        try:
            loaded = [self.read(images[index]) for index in _image_order(marks, len(images))]
        except DataError as error:
            raise DataError(f"{error} (row with the problem {problem[:80]!r})") from error
        if not marks:
            return [*[{"type": "image"}] * len(images), {"type": "text", "text": text}], loaded
        return _parts(text, marks), loaded


def _parts(text: str, marks: list[Any]) -> list[dict[str, str]]:
    """The text split at its marks; empty parts are left out."""
    parts: list[dict[str, str]] = []
    position = 0
    for mark in marks:
        parts += [{"type": "text", "text": text[position : mark.start()]}, {"type": "image"}]
        position = mark.end()
    parts.append({"type": "text", "text": text[position:]})
    return [part for part in parts if part.get("text") != ""]


def _image_order(marks: list[Any], num_images: int) -> list[int]:
    """Images in the order of their marks: by number if the marks are numbered 1 to N, else as stored."""
    numbers = [int(mark.group(1)) - 1 for mark in marks if mark.group(1)]
    return numbers if sorted(numbers) == list(range(num_images)) else list(range(num_images))
