"""The position of each visual token of a prompt in its image.

Model families split images in different ways: adjacent patches are merged into a token, an image is split into tiles
in addition to the complete image, it is padded to the shape of its tiles and the padding is removed again, and a token
may mark the end of a row. A layout describes the grids of a prompt for a family, in token order. Nothing is guessed:
if the number of tokens does not match the layout, there are no grids.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, ProcessorMixin
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image

from vgpo.focus import visual_token_ids

Box = tuple[float, float, float, float]
WHOLE = (0.0, 0.0, 1.0, 1.0)
PLACE_OF_TILE = re.compile(r"<row_(\d+)_col_(\d+)>\s*$")
BESIDE = 1e-6  # share of the image that a cell must cover to be inside it


class UnknownLayoutError(ValueError):
    """The layout of a prompt's visual tokens is unknown; the message says why."""


@dataclass(frozen=True)
class Grid:
    """A part of an image that is divided into cells of the same size, one visual token each.

    Attributes:
        image: Index of the image in the prompt, from 0.
        name: `whole`, or `tile 1` and so on.
        box: Left, top, right and bottom edge, in fractions of the image; cells that extend into padding are outside
        [0, 1].
        rows: Cells from top to bottom.
        columns: Cells from left to right.
        tokens: The visual token of each cell, counted from 0 over the prompt; row by row.
    """

    image: int
    name: str
    box: Box
    rows: int
    columns: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """Information needed to locate the visual tokens of a prompt.

    Attributes:
        config: The model's configuration.
        processor: Its processor.
        token_ids: The prompt, unpadded.
        media: The processor's output for its images.
        sizes: (height, width) of each image as passed to the processor.
    """

    config: PretrainedConfig
    processor: ProcessorMixin
    token_ids: Sequence[int]
    media: Mapping[str, Tensor]
    sizes: Sequence[tuple[int, int]]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Start and end (exclusive) of each run of visual tokens."""
        visual = np.isin(self.token_ids, visual_token_ids(self.config)).astype(np.int8)
        edges = np.diff(visual, prepend=0, append=0)
        return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True)
class Part:
    """A grid whose tokens are not numbered yet; parts are in token order.

    Attributes:
        image, name, box, rows, columns: As in `Grid`.
        row_end_tokens: Tokens after each row that have no position in the image.
        trailing_tokens: Tokens after the last row that have no position in the image.
    """

    image: int
    name: str
    box: Box
    rows: int
    columns: int
    row_end_tokens: int = 0
    trailing_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.rows * (self.columns + self.row_end_tokens) + self.trailing_tokens

    def grid(self, first: int) -> Grid:
        """The grid whose first cell has the visual token `first`, without padding-only rows and columns."""
        x0, y0, x1, y1 = self.box
        left, right = inside(x0, x1, self.columns)
        top, bottom = inside(y0, y1, self.rows)
        width, height = (x1 - x0) / self.columns, (y1 - y0) / self.rows
        stride = self.columns + self.row_end_tokens
        return Grid(
            image=self.image,
            name=self.name,
            box=(x0 + left * width, y0 + top * height, x0 + right * width, y0 + bottom * height),
            rows=bottom - top,
            columns=right - left,
            tokens=tuple(first + row * stride + column for row in range(top, bottom) for column in range(left, right)),
        )


Layout = Callable[[Prompt], Iterator[Part]]


def grids_of(prompt: Prompt) -> list[Grid]:
    """The grids of a prompt, image after image.

    Every visual token with a position is in exactly one grid; an image that is present completely and in tiles has
    overlapping grids.

    Raises:
        UnknownLayoutError: The family is not in `LAYOUTS`, or the prompt's tokens do not match its layout.
    """
    parts = list(layout_of(prompt.config)(prompt))
    expected = sum(part.num_tokens for part in parts)
    if expected != prompt.num_tokens:
        sizes = ", ".join(f"{width} x {height}" for height, width in prompt.sizes)
        raise UnknownLayoutError(
            f"a prompt with images of {sizes} pixels has {prompt.num_tokens} visual tokens, expected {expected} of "
            f"the family {prompt.config.model_type!r}, so there are no maps over its images"
        )
    grids, first = [], 0
    for part in parts:
        grids.append(part.grid(first))
        first += part.num_tokens
    return grids


def layout_of(config: PretrainedConfig) -> Layout:
    """The layout of a model's family.

    Raises:
        UnknownLayoutError: It is unknown.
    """
    if config.model_type not in LAYOUTS:
        raise UnknownLayoutError(
            f"the positions of visual tokens in images are unknown for the family {config.model_type!r} (known: "
            f"{', '.join(LAYOUTS)}), so there are no maps over images"
        )
    return LAYOUTS[config.model_type]


def inside(start: float, stop: float, number: int) -> tuple[int, int]:
    """Range of the cells in [0, 1], end exclusive, among `number` equal cells between two positions."""
    size = (stop - start) / number
    first = max(0, math.floor((BESIDE - start) / size))
    return first, min(number, math.ceil((1 - BESIDE - start) / size))


def merged_patches(prompt: Prompt) -> Iterator[Part]:
    """Qwen-VL: a token represents merge x merge patches of the resized image."""
    merge = prompt.config.vision_config.spatial_merge_size
    for image, (time, height, width) in enumerate(image_grids(prompt)):
        if time != 1:
            raise UnknownLayoutError(f"image {image} has {time} frames, expected a still image")
        yield Part(image, "whole", WHOLE, height // merge, width // merge)


def image_grids(prompt: Prompt) -> list[list[int]]:
    """Patches of each image along time, height and width."""
    return prompt.media["image_grid_thw"].tolist() if prompt.sizes else []


def tiles_and_thumbnail(prompt: Prompt) -> Iterator[Part]:
    """InternVL: tiles of the image stretched to their number, then the complete image, unless it is the only tile."""
    vision, images = prompt.config.vision_config, prompt.processor.image_processor
    rows, columns = (
        int(size // patch * prompt.config.downsample_ratio)
        for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
    )
    for image, (run, size) in enumerate(zip(image_runs(prompt), prompt.sizes, strict=True)):
        num_tiles = run // (rows * columns)
        if num_tiles > 1:
            tile = (images.size["height"], images.size["width"])
            across, down = get_optimal_tiled_canvas(size, tile, images.min_patches, images.max_patches)
            yield from tiles(image, down, across, rows, columns)
        yield Part(image, "whole", WHOLE, rows, columns)


def image_runs(prompt: Prompt) -> list[int]:
    """Lengths of the runs of visual tokens, for families that mark where an image begins and ends.

    Raises:
        UnknownLayoutError: The numbers of runs and images differ.
    """
    if len(prompt.runs) != len(prompt.sizes):
        raise UnknownLayoutError(
            f"a prompt with {len(prompt.sizes)} images has {len(prompt.runs)} runs of visual tokens, expected "
            "one for each image, so there are no maps over them"
        )
    return [stop - start for start, stop in prompt.runs]


def tiles(image: int, down: int, across: int, rows: int, columns: int) -> Iterator[Part]:
    """An image as down x across tiles of rows x columns tokens."""
    for number in range(down * across):
        row, column = divmod(number, across)
        box = (column / across, row / down, (column + 1) / across, (row + 1) / down)
        yield Part(image, f"tile {number + 1}", box, rows, columns)


def tiles_by_their_tags(prompt: Prompt) -> Iterator[Part]:
    """Idefics3, SmolVLM: tiles of the stretched image, each after a tag with its position, then the complete image."""
    vision = prompt.config.vision_config
    side = vision.image_size // vision.patch_size // prompt.config.scale_factor
    image, down, across, end = 0, 0, 0, 0
    for start, stop in prompt.runs:
        place = PLACE_OF_TILE.search(prompt.processor.tokenizer.decode(prompt.token_ids[end:start]))
        end = stop
        if place:
            down, across = int(place[1]), int(place[2])  # of the last tile
            continue
        yield from tiles(image, down, across, side, side)
        yield Part(image, "whole", WHOLE, side, side)
        image, down, across = image + 1, 0, 0


def pooled_square(prompt: Prompt) -> Iterator[Part]:
    """Gemma 3: the image stretched to a square, its patches averaged in blocks; additional crops are not supported."""
    side = int(prompt.config.mm_tokens_per_image**0.5)
    for image in range(len(image_runs(prompt))):
        yield Part(image, "whole", WHOLE, side, side)


def tiles_by_shape(prompt: Prompt) -> Iterator[Part]:
    """LLaVA-NeXT: each complete image, then its tiles."""
    for image, size in enumerate(prompt.sizes):
        yield from whole_and_unpadded_tiles(prompt.config, image, size)


def tiles_of_one_image(prompt: Prompt) -> Iterator[Part]:
    """LLaVA-OneVision: a single image as in LLaVA-NeXT; one of several padded to a square, with a token after it."""
    config = prompt.config
    if len(prompt.sizes) == 1:
        limit = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        yield from whole_and_unpadded_tiles(config, 0, prompt.sizes[0], max_tiles=limit)
        return
    side, covered = tower(config)
    for image, (height, width) in enumerate(prompt.sizes):
        square = max(height, width)
        left, top = -((square - width) // 2) / width, -((square - height) // 2) / height
        box = (left, top, left + square / width * covered, top + square / height * covered)
        yield Part(image, "whole", box, side, side, trailing_tokens=1)


def tower(config: PretrainedConfig) -> tuple[int, float]:
    """Tokens along a tile, and the share of its side that their patches cover: an incomplete last patch has no
    token."""
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    return size // patch, size // patch * patch / size


def whole_and_unpadded_tiles(
    config: PretrainedConfig, image: int, size: tuple[int, int], max_tiles: int | None = None
) -> Iterator[Part]:
    """The image stretched to one tile, then resized with its aspect ratio to several tiles, with padding removed.

    A row of tokens extends over all tiles and ends with a token without a position. Above 1.21 * `max_tiles` tiles,
    rows and columns are reduced. Where the patches of a tile do not cover its edge, cells have the average width.
    """
    side, covered = tower(config)
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    yield Part(image, "whole", (0.0, 0.0, covered, covered), side, side)
    target = select_best_resolution(size, config.image_grid_pinpoints)
    resized = get_patch_output_size(np.broadcast_to(np.uint8(0), (1, *size)), target, ChannelDimension.FIRST)
    shape = [length // tile * side for length in target]
    cells = torch.arange(math.prod(shape)).view(1, *shape)
    kept = unpad_image(cells, size)[0]
    corners = [divmod(int(corner), shape[1]) for corner in (kept[0, 0], kept[-1, -1])]
    edges = []
    for axis in (1, 0):  # across, then down
        padding = (target[axis] - resized[axis]) // 2
        first, last = (corner[axis] // side * tile + corner[axis] % side * patch for corner in corners)
        edges.append([(pixel - padding) / resized[axis] for pixel in (first, last + patch)])
    rows, columns = kept.shape
    if max_tiles is not None and (ratio := math.sqrt(rows * columns / (max_tiles * side**2))) > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    (left, right), (top, bottom) = edges
    yield Part(image, "tiles", (left, top, right, bottom), rows, columns, row_end_tokens=1)


# By the config's `model_type`.
LAYOUTS: dict[str, Layout] = {
    "qwen2_vl": merged_patches,
    "qwen2_5_vl": merged_patches,
    "qwen3_vl": merged_patches,
    "qwen3_5": merged_patches,
    "internvl": tiles_and_thumbnail,
    "llava_onevision": tiles_of_one_image,
    "smolvlm": tiles_by_their_tags,
    "idefics3": tiles_by_their_tags,
    "llava_next": tiles_by_shape,
    "gemma3": pooled_square,
}


def image_sizes(images: Sequence[Any]) -> list[tuple[int, int]]:
    """(height, width) of each PIL image."""
    return [(image.height, image.width) for image in images]
