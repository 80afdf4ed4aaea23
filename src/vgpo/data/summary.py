"""Summary of a dataset: counts by kind of problem and by type of answer."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from vgpo.answers import choice_letter
from vgpo.data.schema import ANSWER, IMAGES, META, as_list, quantity

MAX_KINDS = 20
MAX_COLUMNS = 3
# Columns that name the kind of a problem; shown before other categorical columns.
NAMES = ("category", "source", "data_source", "question_type", "problem_version", "subject", "skill", "task")

_NUMBER = re.compile(r"[-+]?[$€]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?\s*(?:%|\\%|°)?|[-+]?\.\d+")
_LETTERS = re.compile(r"\(?[A-L]\)?(?:(?:\s*[,;]\s*|\s+and\s+)\(?[A-L]\)?)+")
_YES_NO = re.compile(r"(?i:yes|no|true|false)\.?")
_SIGNS = re.compile(r"[\\^/=√π<>≤≥]")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class DatasetSummary:
    """Counts over all rows, each in descending order.

    num_rows: rows. images: rows by their number of images. answers: rows by type of answer. kinds: for each text
    column in `meta` with 2 to 20 values and at least two rows per value on average, rows by value; at most three such
    columns.
    """

    num_rows: int
    images: dict[str, int]
    answers: dict[str, int]
    kinds: dict[str, dict[str, int]]

    @property
    def tables(self) -> dict[str, dict[str, int]]:
        """All counts by heading."""
        return {"images per row": self.images, "answers by type": self.answers, **self.kinds}


def summarize(dataset: datasets.Dataset) -> DatasetSummary:
    """Count the rows of a dataset from `load_dataset`. No image is opened."""
    columns = [name for name in (IMAGES, ANSWER) if name in dataset.column_names]
    images: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for batch in dataset.select_columns(columns).with_format("arrow").iter(64):
        answers.update(map(answer_kind, batch[ANSWER].to_pylist()))
        cells = batch[IMAGES].to_pylist() if IMAGES in columns else []
        images.update(quantity(len(as_list(cell)), "image") for cell in cells)
    return DatasetSummary(len(dataset), _ordered(images), _ordered(answers), _kinds(dataset))


def answer_kind(answer: str | None) -> str:
    """The type of an answer: number, choice letter, several letters, yes or no, expression, text, or empty."""
    text = (answer or "").strip()
    if choice_letter(text):
        return "choice letter"
    patterns = {"number": _NUMBER, "several letters": _LETTERS, "yes or no": _YES_NO}
    for name, pattern in patterns.items():
        if pattern.fullmatch(text):
            return name
    if not text:
        return "empty"
    has_digit = any(character.isdigit() for character in text)
    return "expression" if _SIGNS.search(text) or (has_digit and not _WORD.search(text)) else "text"


def _kinds(dataset: datasets.Dataset) -> dict[str, dict[str, int]]:
    if META not in dataset.column_names:
        return {}
    values: dict[str, list[str]] = {}
    for meta in dataset.select_columns([META])[META]:
        for name, value in _flat(meta):
            values.setdefault(name, []).append(value)
    kinds = {name: _ordered(Counter(texts)) for name, texts in values.items()}
    sorting = [name for name, counts in kinds.items() if 2 <= len(counts) <= min(MAX_KINDS, len(values[name]) // 2)]
    first = sorted(sorting, key=lambda name: name.rpartition(".")[2] not in NAMES)  # stable: else in order
    return {name: kinds[name] for name in first[:MAX_COLUMNS]}


def _flat(meta: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a row's meta by name; those of a record as `record.field`."""
    for name, value in meta.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", text) for key, text in value.items() if isinstance(text, str))


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())
