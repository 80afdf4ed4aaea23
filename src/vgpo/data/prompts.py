"""Prompts from rows: a jinja template around the problem, pictures at their `<image>` marks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import jinja2
import jinja2.meta
import jinja2.sandbox

from vgpo.data.errors import DataError
from vgpo.data.images import decode_image
from vgpo.data.schema import ANSWER, ID, IMAGE_MARK, IMAGES, META, PROBLEM, as_list, check_columns, mark_fault

_FOLDER = Path(__file__).parent / "templates"


def to_prompts(
    dataset: datasets.Dataset, template: str = "plain", read: Callable[[Any], Any] = decode_image
) -> datasets.Dataset:
    """`dataset` with rows as TRL takes them, made when a row is read.

    A row is {"prompt": [{"role": "user", "content": [parts]}], "images": [RGB pictures], "problem": str,
    "answer": str}; parts are {"type": "image"} and {"type": "text", "text": str} in the order of the problem's
    `<image>` marks, or pictures first where it has none. `problem` stays as it is in the data set, and so do `id`
    and `meta` where it has them.
    template: "plain", "think_boxed", or the path of a jinja file with the variable `problem`.
    read: what becomes of a picture; with `image_size` no picture is decoded.
    DataError for a bad template at once, for a bad row when it is read (run `check_dataset` first).
    """
    check_columns(dataset)
    columns = [name for name in (IMAGES, PROBLEM, ANSWER, ID, META) if name in dataset.column_names]
    text = template_text(template)
    _compile(text)
    prompts = dataset.select_columns(columns).with_transform(_PromptTransform(text, read))
    # Undecoded, so that a bad picture reaches decode_image and is told with its problem; the stored data is the same.
    prompts.info.features = datasets.Features(
        {name: _undecoded(feature) for name, feature in dataset.features.items() if name in columns}
    )
    return prompts


def template_text(name_or_path: str) -> str:
    """The source of a template: "plain", "think_boxed" or the path of a jinja file. DataError if unknown."""
    packaged = {path.stem: path for path in sorted(_FOLDER.glob("*.jinja"))}
    path = packaged.get(name_or_path, Path(name_or_path).expanduser())
    if not path.is_file():
        raise DataError(
            f"there is no prompt template {name_or_path!r}; use one of {list(packaged)} or the path of a jinja file"
        )
    return path.read_text(encoding="utf-8")


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return replace(feature, decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


@dataclass(frozen=True)
class _PromptTransform:
    """Turns a batch of columns into a batch of prompts; holds text and a public function, so that it pickles."""

    template: str
    read: Callable[[Any], Any]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        problems = batch[PROBLEM]
        images = batch[IMAGES] if IMAGES in batch else [[]] * len(problems)
        rows = [self._row(problem, as_list(cell)) for problem, cell in zip(problems, images, strict=True)]
        return {
            "prompt": [[{"role": "user", "content": content}] for content, _ in rows],
            IMAGES: [pictures for _, pictures in rows],
            PROBLEM: problems,
            ANSWER: [str(answer) for answer in batch[ANSWER]],
            **{name: batch[name] for name in (ID, META) if name in batch},
        }

    def _row(self, problem: str, images: list[Any]) -> tuple[list[dict[str, str]], list[Any]]:
        text = _compile(self.template).render(problem=problem)
        marks = list(IMAGE_MARK.finditer(text))
        if fault := mark_fault(text, len(images)):
            raise DataError(f"{fault} (row with the problem {problem[:80]!r})")
        try:
            pictures = [self.read(images[index]) for index in _picture_order(marks, len(images))]
        except DataError as error:
            raise DataError(f"{error} (row with the problem {problem[:80]!r})") from error
        if not marks:
            return [*[{"type": "image"}] * len(images), {"type": "text", "text": text}], pictures
        return _parts(text, marks), pictures


def _parts(text: str, marks: list[Any]) -> list[dict[str, str]]:
    """The text cut at its marks; empty stretches are left out."""
    parts: list[dict[str, str]] = []
    position = 0
    for mark in marks:
        parts += [{"type": "text", "text": text[position : mark.start()]}, {"type": "image"}]
        position = mark.end()
    parts.append({"type": "text", "text": text[position:]})
    return [part for part in parts if part.get("text") != ""]


def _picture_order(marks: list[Any], num_images: int) -> list[int]:
    """Pictures in the order of their marks: by number if the marks are numbered 1 to N, else as stored."""
    numbers = [int(mark.group(1)) - 1 for mark in marks if mark.group(1)]
    return numbers if sorted(numbers) == list(range(num_images)) else list(range(num_images))


@functools.cache
def _compile(text: str) -> jinja2.Template:
    # Not HTML, hence no escaping; the sandbox keeps a downloaded template from reaching Python.
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the prompt template has an error in line {error.lineno}: {error.message}") from error
    if variables != {PROBLEM}:
        raise DataError(
            f"the prompt template uses the variables {sorted(variables)}; expected exactly ['problem'], as in "
            "{{ problem }}"
        )
    return environment.from_string(text)
