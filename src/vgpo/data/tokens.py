"""Count the tokens of prompts, and drop those that are too long; a prompt is never truncated."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import PIL.Image
from transformers import ProcessorMixin

from vgpo.data.errors import DataError
from vgpo.data.images import image_size
from vgpo.data.progress import with_bar
from vgpo.data.prompts import to_prompts
from vgpo.data.schema import IMAGES, as_list, quantity, source_rows

Size = tuple[int, int]  # (height, width)

_SHOWN_ROWS = 10


def prompt_lengths(
    dataset: datasets.Dataset,
    template: str,
    processor: ProcessorMixin,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Tokens of each row's prompt, texts and images, as the model gets it.

    Image tokens are computed by the processor from the sizes in the image headers, if this agrees with encoding blank
    images of the most extreme sizes; otherwise every prompt is encoded. dataset: from `load_dataset`. DataError for an
    image that cannot be opened, or that the processor rejects.
    """
    counter = TokenCounter(processor, chat_template_kwargs or {})
    rows = to_prompts(dataset, template, image_size)
    offset = counter.offset(_extreme_sizes(rows))
    if offset is not None:
        return [
            counter.computed(row["prompt"], row[IMAGES], offset)
            for row in with_bar(rows, "Counting tokens", rows=len(rows))
        ]
    return [
        counter.encoded(row["prompt"], row[IMAGES])
        for row in with_bar(to_prompts(dataset, template), "Counting tokens", rows=len(rows))
    ]


def drop_long(
    dataset: datasets.Dataset, lengths: Sequence[int], max_prompt_length: int | None
) -> tuple[datasets.Dataset, str | None]:
    """The rows whose prompts have at most `max_prompt_length` tokens, and a message about dropped ones, if any.

    DataError if no row is left.
    """
    numbers = source_rows(dataset)
    long = [] if max_prompt_length is None else [row for row, n in enumerate(lengths) if n > max_prompt_length]
    if not long:
        return dataset, None
    if len(long) == len(dataset):
        raise DataError(
            f"all {quantity(len(dataset), 'prompt')} have more than max_prompt_length={max_prompt_length} "
            f"tokens; the shortest has {min(lengths)}. Raise it, or lower max_pixels"
        )
    kept = sorted(set(range(len(dataset))) - set(long))
    rows = ", ".join(str(numbers[row]) for row in long[:_SHOWN_ROWS]) + (", ..." if len(long) > _SHOWN_ROWS else "")
    return dataset.select(kept), (
        f"dropped {len(long)} of {quantity(len(dataset), 'prompt')}, longer than "
        f"max_prompt_length={max_prompt_length} tokens (row{'s' * (len(long) > 1)} {rows}); "
        f"the longest has {max(lengths)}"
    )


class TokenCounter:
    """Counts the tokens of prompts for one processor and one setting of its chat template."""

    def __init__(self, processor: ProcessorMixin, chat_template_kwargs: Mapping[str, Any]) -> None:
        self.processor = processor
        self.chat_template_kwargs = chat_template_kwargs

    def text(self, prompt: list[dict[str, Any]]) -> str:
        """The prompt in the model's chat format, an image as its placeholder."""
        return self.processor.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False, **self.chat_template_kwargs
        )

    def encoded(self, prompt: list[dict[str, Any]], images: list[PIL.Image.Image]) -> int:
        """Tokens of a prompt, by encoding it."""
        remaining = iter(images)
        content = [
            {**part, "image": next(remaining)} if part["type"] == "image" else part for part in prompt[0]["content"]
        ]
        try:
            inputs = self.processor.apply_chat_template(
                [{**prompt[0], "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **self.chat_template_kwargs,
            )
        except ValueError as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise DataError(f"the processor rejects images of {sizes} pixels: {error}; resize or drop them") from error
        ids = inputs["input_ids"]
        return len(ids[0]) if isinstance(ids[0], list) else len(ids)

    def visual(self, sizes: Sequence[Size]) -> int:
        """Tokens of images as the processor computes them, which may not include the tokens around an image."""
        if not sizes:
            return 0
        return sum(
            self.processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes]).num_image_tokens
        )

    def computed(self, prompt: list[dict[str, Any]], sizes: Sequence[Size], offset: tuple[int, int]) -> int:
        """Tokens of a prompt without encoding its images; offset: from `offset`."""
        tokens = len(self.processor.tokenizer(self.text(prompt))["input_ids"])
        return tokens + self.visual(sizes) + offset[0] + offset[1] * len(sizes)

    def offset(self, sizes: Sequence[Size]) -> tuple[int, int] | None:
        """Tokens that the computation misses, as (tokens per prompt, tokens per image).

        None if they differ between blank images of `sizes`, alone and two together, or the processor computes none.
        """
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):
            return None
        per_prompt = self._missed([])
        if not sizes:
            return per_prompt, 0
        missed = {self._missed([size]) - per_prompt for size in sizes}
        (per_image, *others) = missed
        if others or self._missed([sizes[0], sizes[-1]]) != per_prompt + 2 * per_image:
            return None
        return per_prompt, per_image

    def _missed(self, sizes: list[Size]) -> int:
        content = [*[{"type": "image"}] * len(sizes), {"type": "text", "text": "1"}]
        prompt = [{"role": "user", "content": content}]
        blank = [PIL.Image.new("RGB", (width, height)) for height, width in sizes]
        return self.encoded(prompt, blank) - self.computed(prompt, sizes, (0, 0))


def _extreme_sizes(rows: datasets.Dataset) -> list[Size]:
    """The smallest, largest, widest and narrowest of the sizes that occur."""
    sizes = sorted(
        {size for row in with_bar(rows, "Reading image sizes", rows=len(rows)) for size in as_list(row[IMAGES])}
    )
    if not sizes:
        return []
    area, flatness = (lambda size: size[0] * size[1]), (lambda size: size[1] / size[0])
    return list(dict.fromkeys(pick(sizes, key=key) for pick in (min, max) for key in (area, flatness)))
