"""Prompts as the model gets them, shown in a terminal or on a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import jinja2
import PIL.Image
from transformers import ProcessorMixin

from vgpo.data.images import image_size
from vgpo.data.prompts import to_prompts
from vgpo.data.schema import ANSWER, ID, IMAGES, source_rows
from vgpo.data.summary import DatasetSummary
from vgpo.data.tokens import TokenCounter
from vgpo.pages import SHARED, inlined, page_environment
from vgpo.pages.images import image_entry
from vgpo.pages.verdict import Verdict, quoted

FOLDER = Path(__file__).parent
NUM_BINS = 12
_SIDE = 640  # longest side of an image on the page, in pixels


@dataclass(frozen=True)
class Preview:
    """One prompt. row: its number in the dataset. text: in the model's chat format. sizes: (height, width) as
    stored."""

    row: int
    id: str
    tokens: int
    text: str
    answer: str
    sizes: list[tuple[int, int]]
    images: list[PIL.Image.Image]

    @property
    def uris(self) -> list[str]:
        """The images as data URIs, scaled down to at most 640 pixels per side."""
        return [image_entry(image, _SIDE)["uri"] for image in self.images]


@dataclass(frozen=True)
class Bin:
    """Prompts of `low` to `high` tokens, inclusive, and their number relative to the largest bin, in [0, 1]."""

    low: int
    high: int
    num_prompts: int
    share: float


@dataclass(frozen=True)
class SetCheck:
    """The result for one valid dataset. field: of the recipe. left_out: the message about prompts that are too
    long."""

    field: str
    source: str
    summary: DatasetSummary
    lengths: list[int]
    left_out: str | None
    previews: list[Preview]

    @property
    def bins(self) -> list[Bin]:
        return histogram(self.lengths)


def previews(
    dataset: datasets.Dataset,
    template: str,
    processor: ProcessorMixin,
    lengths: Sequence[int],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Preview]:
    """The shortest, the median and the longest prompt; fewer if the dataset has fewer rows.

    dataset: from `load_dataset`. lengths: from `prompt_lengths`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    chosen = list(dict.fromkeys([order[0], order[len(order) // 2], order[-1]]))
    numbers = source_rows(dataset)
    counter = TokenCounter(processor, chat_template_kwargs or {})
    shown = dataset.select(chosen)
    rows, sizes = to_prompts(shown, template), to_prompts(shown, template, image_size)[IMAGES]
    return [
        Preview(
            row=numbers[number],
            id=row[ID],
            tokens=lengths[number],
            text=counter.text(row["prompt"]),
            answer=row[ANSWER],
            sizes=[tuple(size) for size in row_sizes],
            images=row[IMAGES],
        )
        for number, row, row_sizes in zip(chosen, rows, sizes, strict=True)
    ]


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """At most twelve bins of equal width over all lengths."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // NUM_BINS)
    counts = [0] * -(-(high - low + 1) // width)
    for length in lengths:
        counts[(length - low) // width] += 1
    fullest = max(counts)
    return [
        Bin(low + index * width, low + (index + 1) * width - 1, number, number / fullest)
        for index, number in enumerate(counts)
    ]


def write_page(checks: Sequence[SetCheck], path: Path, recipe: str) -> Path:
    """Write one self-contained page without scripts; all text in it is escaped. Returns `path`."""
    environment = page_environment(jinja2.FileSystemLoader(FOLDER))
    page = environment.get_template("check.html.jinja").render(
        checks=checks,
        recipe=recipe,
        found=check_verdict(checks),
        **inlined([SHARED / "page.css", FOLDER / "check.css"], []),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def check_verdict(checks: Sequence[SetCheck]) -> Verdict:
    """How many rows are valid, how long their prompts are, and what is left out."""
    left_out = [one.left_out for one in checks if one.left_out]
    if len(checks) == 1:
        [one] = checks
        rows = f"All {one.summary.num_rows:,} rows of {quoted(one.field)} are valid"
    else:
        rows = "All rows are valid: " + ", ".join(f"{one.summary.num_rows:,} of {quoted(one.field)}" for one in checks)
    lengths = [length for one in checks for length in one.lengths]
    tokens = ""
    if lengths:
        low, high = min(lengths), max(lengths)
        tokens = f"; prompts have {low:,} tokens" if low == high else f"; prompts have {low:,} to {high:,} tokens"
    return Verdict("open" if left_out else "gain", rows + tokens, left_out)
