"""Grids against the model itself: a dot in an image must change the features of the very token whose cell it is in.

The layers of the vision tower are taken out, so that a feature depends on its own pixels alone. Everything else is the
family's: its processor, the merging, tiling and unpadding of its model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel, ProcessorMixin

from tests.families.build import FAMILIES, LoadFamily, draw_weights, encode_prompts
from vgpo.inspection.patches import LAYOUTS, Grid, Part, Prompt, UnknownLayoutError, grids_of, image_sizes

pytest_plugins = ["tests.families.fixtures"]

# Alone: wide, tall, square, smaller than a tile, with sides that no patch divides.
ALONE = [(112, 56), (56, 112), (56, 56), (24, 20), (101, 67), (45, 118)]
SEVERAL = [(56, 84), (28, 56), (112, 56)]
THIN = 0.05
BLUR = 0.1  # share of an image over which its resizing smears a pixel
Box = tuple[float, float, float, float]


def plain_pictures(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    return [Image.new("RGB", size, (40, 60, 90)) for size in sizes]


def encode(model: PreTrainedModel, processor: ProcessorMixin, images: list[Image.Image]) -> Prompt:
    fields = dict(encode_prompts(processor, [("How many?", images)])[0])
    token_ids = fields.pop("input_ids")[0].tolist()
    return Prompt(model.config, processor, token_ids, fields, image_sizes(images))


def without_layers(model: PreTrainedModel) -> None:
    """Every layer of the vision tower gives back what it gets."""
    towers = [module for name, module in model.named_modules() if name.split(".")[-1] in ("visual", "vision_tower")]
    tower = (towers or [model.model.vision_model])[0]
    layers = next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))
    for layer in layers:
        layer.register_forward_hook(lambda module, args, kwargs, output: args[0], with_kwargs=True)


@torch.no_grad()
def features(model: PreTrainedModel, prompt: Prompt) -> Tensor:
    """What takes the place of the visual tokens; (V, D)."""
    known = ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images", "pixel_attention_mask")
    fields = {name: value for name, value in prompt.media.items() if name in known}
    found = model.get_image_features(**fields).pooler_output
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in found])


def cells(grid: Grid) -> Iterator[tuple[int, Box]]:
    """Each visual token with the edges of its cell, in fractions of the image."""
    x0, y0, x1, y1 = grid.box
    width, height = (x1 - x0) / grid.columns, (y1 - y0) / grid.rows
    for place, token in enumerate(grid.tokens):
        row, column = divmod(place, grid.columns)
        left, top = x0 + column * width, y0 + row * height
        yield token, (left, top, left + width, top + height)


def middle(edges: Box) -> Box:
    """The middle half of what a cell shows of the image."""
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in edges)
    width, height = (right - left) / 4, (bottom - top) / 4
    return left + width, top + height, right - width, bottom - height


def with_block(image: Image.Image, block: Box) -> Image.Image:
    left, top, right, bottom = block
    pixels = [round(left * image.width), round(top * image.height)]
    pixels += [max(pixels[0], round(right * image.width) - 1), max(pixels[1], round(bottom * image.height) - 1)]
    painted = image.copy()
    ImageDraw.Draw(painted).rectangle(pixels, "white")
    return painted


def far(edges: Box, block: Box) -> bool:
    """Whether resizing cannot carry the block into a cell."""
    left, top, right, bottom = edges
    return right < block[0] - BLUR or left > block[2] + BLUR or bottom < block[1] - BLUR or top > block[3] + BLUR


def check_every_cell(model: PreTrainedModel, processor: ProcessorMixin, sizes: list[tuple[int, int]]) -> None:
    images = plain_pictures(sizes)
    prompt = encode(model, processor, images)
    grids, before = grids_of(prompt), features(model, prompt)
    placed = [token for grid in grids for token in grid.tokens]
    assert len(set(placed)) == len(placed)
    nowhere = [token for token in range(len(before)) if token not in placed]
    num_checked = 0
    for grid in grids:
        for token, edges in cells(grid):
            block = middle(edges)
            if min(block[2] - block[0], block[3] - block[1]) < THIN:
                continue  # next to nothing but padding
            painted = with_block(images[grid.image], block)
            changed = [painted if i == grid.image else image for i, image in enumerate(images)]
            moved = (features(model, encode(model, processor, changed)) - before).norm(dim=-1)
            assert grid.tokens[moved[list(grid.tokens)].argmax()] == token, (grid, edges)
            untouched = nowhere + [
                other for g in grids for other, its in cells(g) if g.image != grid.image or far(its, block)
            ]
            assert (moved[untouched] < 0.05 * moved.max()).all(), (grid, edges)
            num_checked += 1
    assert num_checked >= 0.9 * len(placed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dot_lights_the_token_of_its_cell(family: str, load_family: LoadFamily) -> None:
    model, processor = load_family(family)
    without_layers(model)
    for sizes in (*([size] for size in ALONE), SEVERAL):
        check_every_cell(model, processor, sizes)


def test_cells_made_fewer_for_many_tiles(load_family: LoadFamily) -> None:
    model, processor = load_family("llava_onevision")
    without_layers(model)
    model.config.vision_aspect_ratio = processor.vision_aspect_ratio = "anyres_max_1"
    prompt = encode(model, processor, plain_pictures([(56, 56)]))
    assert [(grid.rows, grid.columns) for grid in grids_of(prompt)] == [(2, 2), (2, 2)]  # of 4 x 4
    check_every_cell(model, processor, [(56, 56)])
    check_every_cell(model, processor, [(45, 118)])


def test_tiles_with_an_edge_that_no_patch_covers() -> None:
    config, processor = FAMILIES["llava_onevision"]()
    config.vision_config.image_size, pinpoints = 31, [[31, 62], [62, 31], [62, 62]]
    config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = pinpoints
    processor.image_processor.size = {"height": 31, "width": 31}
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    draw_weights(model, seed=0)
    without_layers(model)
    whole, tiles = grids_of(encode(model, processor, plain_pictures([(62, 62)])))
    assert whole.box == pytest.approx((0, 0, 28 / 31, 28 / 31))
    assert tiles.box == pytest.approx((0, 0, 59 / 62, 59 / 62))
    for sizes in ([(62, 62)], [(50, 110)], SEVERAL):
        check_every_cell(model, processor, sizes)


def of_full_size(family: str) -> tuple[PretrainedConfig, ProcessorMixin]:
    """Tiles and patches of the family's published checkpoints."""
    config, processor = FAMILIES[family]()
    vision, images = config.vision_config, processor.image_processor
    if family == "internvl":
        vision.image_size, vision.patch_size, images.max_patches = [448, 448], [14, 14], 12
        images.size, processor.image_seq_length = {"height": 448, "width": 448}, 256
    elif family == "llava_onevision":
        vision.image_size, vision.patch_size, processor.num_image_tokens = 384, 14, 729
        images.size = {"height": 384, "width": 384}
        pinpoints = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
        config.image_grid_pinpoints = images.image_grid_pinpoints = pinpoints
    elif family == "llava_next":
        vision.image_size = 336
        images.size, images.crop_size = {"shortest_edge": 336}, {"height": 336, "width": 336}
        pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
        config.image_grid_pinpoints = images.image_grid_pinpoints = pinpoints
    else:
        tile, vision.patch_size, config.scale_factor = (512, 16, 4) if family == "smolvlm" else (364, 14, 2)
        images.size, images.max_image_size = {"longest_edge": 4 * tile}, {"longest_edge": tile}
        vision.image_size = tile
        processor.image_seq_len = (tile // vision.patch_size // config.scale_factor) ** 2
    return config, processor


@pytest.mark.parametrize("family", ["internvl", "llava_onevision", "llava_next", "smolvlm", "idefics3"])
def test_grids_of_full_size_checkpoints_cover_their_pictures(family: str) -> None:
    config, processor = of_full_size(family)
    for sizes in ([(640, 427)], [(300, 811)], [(1000, 1000)], [(33, 90)], [(640, 427), (101, 300)]):
        fields = dict(encode_prompts(processor, [("How many?", plain_pictures(sizes))])[0])
        token_ids = fields.pop("input_ids")[0].tolist()
        # Raises where tokens are too many or too few.
        grids = grids_of(Prompt(config, processor, token_ids, fields, image_sizes(plain_pictures(sizes))))
        for image in range(len(sizes)):
            mine = [grid for grid in grids if grid.image == image]
            for name in {grid.name.rstrip("0123456789 ") for grid in mine}:
                left, top, right, bottom = zip(*(grid.box for grid in mine if grid.name.startswith(name)), strict=True)
                assert (min(left), min(top), max(right), max(bottom)) == pytest.approx((0, 0, 1, 1), abs=0.12)


def test_padding_stands_nowhere(load_family: LoadFamily) -> None:
    model, processor = load_family("llava_onevision")
    # Each is padded to a square of 2 x 2 tokens, and the narrow one fills less than its left column.
    first, second = grids_of(encode(model, processor, plain_pictures([(56, 56), (56, 57)])))
    assert (first.rows, first.columns, first.tokens) == (2, 2, (0, 1, 2, 3))
    assert second.tokens == (5, 6, 7, 8)
    assert Part(0, "whole", (-2.0, 0.0, 2.0, 1.0), 1, 8, row_end_tokens=1).grid(3) == Grid(
        0, "whole", (0.0, 0.0, 1.0, 1.0), 1, 2, (7, 8)
    )


def test_a_prompt_without_pictures_has_no_grids(load_family: LoadFamily) -> None:
    for family in FAMILIES:
        assert grids_of(encode(*load_family(family), [])) == []


def test_all_families_of_the_support_table_have_a_layout() -> None:
    assert set(LAYOUTS) == set(FAMILIES)


def test_what_is_not_known_is_said(load_family: LoadFamily) -> None:
    model, processor = load_family("qwen2_vl")
    prompt = encode(model, processor, plain_pictures([(56, 84)]))
    with pytest.raises(UnknownLayoutError, match=r"'mllama'.*known: qwen2_vl"):
        grids_of(replace(prompt, config=SimpleNamespace(model_type="mllama")))
    longer = replace(prompt, token_ids=[*prompt.token_ids, model.config.image_token_id])
    with pytest.raises(UnknownLayoutError, match="56 x 84 pixels has 7 visual tokens, expected 6"):
        grids_of(longer)
    model, processor = load_family("gemma3")
    prompt = encode(model, processor, plain_pictures([(56, 84)]))
    crops = replace(prompt, token_ids=[*prompt.token_ids, model.config.image_token_id])
    with pytest.raises(UnknownLayoutError, match="1 images has 2 runs"):
        grids_of(crops)
