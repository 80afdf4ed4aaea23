"""Datasets of images, problems and checkable answers, and the prompts built from them.

One row: `problem` (text, with `<image>` at the position of an image), `images`, `answer` (text), `id` and `meta`.
"""

from vgpo.data.check import check_dataset
from vgpo.data.errors import DataError
from vgpo.data.faulty import FAULTY_ROWS
from vgpo.data.formats import FORMATS
from vgpo.data.images import decode_image, image_digest, image_size
from vgpo.data.prompts import to_prompts
from vgpo.data.readers import to_canonical
from vgpo.data.rendering import template_text
from vgpo.data.sources import AS_IT_IS, Reading, load_dataset
from vgpo.data.summary import DatasetSummary, answer_kind, summarize
from vgpo.data.tokens import drop_long, prompt_lengths
from vgpo.data.writer import write_trl

__all__ = [
    "AS_IT_IS",
    "FAULTY_ROWS",
    "FORMATS",
    "DataError",
    "DatasetSummary",
    "Reading",
    "answer_kind",
    "check_dataset",
    "decode_image",
    "drop_long",
    "image_digest",
    "image_size",
    "load_dataset",
    "prompt_lengths",
    "summarize",
    "template_text",
    "to_canonical",
    "to_prompts",
    "write_trl",
]
