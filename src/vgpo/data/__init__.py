"""Data sets of pictures, problems and checkable answers, and the prompts made from them.

One schema: `images` (list of pictures), `problem` (text, with `<image>` where a picture goes), `answer` (text).
"""

from vgpo.data.errors import DataError
from vgpo.data.images import decode_image
from vgpo.data.prompts import template_text, to_prompts
from vgpo.data.schema import check_dataset
from vgpo.data.sources import load_dataset

__all__ = ["DataError", "check_dataset", "decode_image", "load_dataset", "template_text", "to_prompts"]
