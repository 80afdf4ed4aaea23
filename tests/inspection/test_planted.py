"""The map against a planted signal: a token that is made to look at one place must light that place, and no other."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.families.build import LoadFamily, picture
from tests.inspection.small import read_by, row
from tests.inspection.test_compute import patch_map
from vgpo.focus import decoder_of, visual_token_ids

pytest_plugins = ["tests.families.fixtures"]

# What response token t looks at: image, name of the grid, row and column there.
Place = tuple[int, str, int, int]
CASES: dict[str, tuple[str, list[tuple[int, int]], list[Place]]] = {
    "merged": ("qwen2_5_vl", [(112, 84)], [(0, "whole", 2, 3), (0, "whole", 0, 0), (0, "whole", 1, 2)]),
    "tiles": ("internvl", [(112, 56)], [(0, "tile 2", 1, 0), (0, "whole", 0, 1), (0, "tile 1", 0, 1)]),
    "unpadded tiles": ("llava_next", [(101, 60)], [(0, "tiles", 1, 3), (0, "whole", 1, 0), (0, "tiles", 0, 0)]),
    "several": ("qwen3_vl", [(64, 96), (96, 32)], [(1, "whole", 0, 2), (0, "whole", 2, 1), (1, "whole", 0, 0)]),
    "several tiled": (
        "smolvlm",
        [(112, 56), (56, 112)],
        [(1, "tile 2", 1, 1), (0, "tile 1", 0, 1), (1, "whole", 1, 0)],
    ),
}
RESPONSE = [40, 50, 60]


def plant(model: nn.Module, columns: list[int]) -> None:
    """Response token t gets the last hidden state of visual token `columns[t]`."""
    ids = torch.tensor(visual_token_ids(model.config))
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)

    def copy(decoder: nn.Module, args: Any, output: Any) -> Any:
        states = output.last_hidden_state.clone()
        visual = torch.isin(seen[-1][0], ids).nonzero()[:, 0]
        for t, column in enumerate(columns):
            states[0, len(seen[-1][0]) - len(RESPONSE) + t] = 3 * states[0, visual[column]]
        output.last_hidden_state = states
        return output

    decoder_of(model).register_forward_hook(copy)


def column_of(grids: list[dict[str, Any]], place: Place) -> int:
    image, name, row, column = place
    (grid,) = [grid for grid in grids if (grid["image"], grid["name"]) == (image, name)]
    return grid["tokens"][row * grid["columns"] + column]


@pytest.mark.parametrize("case", CASES)
def test_a_planted_signal_lights_its_place(case: str, load_family: LoadFamily) -> None:
    family, sizes, places = CASES[case]
    model, processor = load_family(family)
    asked = row("How many?", [picture(*size, seed=i) for i, size in enumerate(sizes)])
    grids = read_by(model, processor, asked, [RESPONSE])["grids"]
    columns = [column_of(grids, place) for place in places]
    plant(model, columns)
    found = read_by(model, processor, asked, [RESPONSE])
    assert found["grids"] == grids
    values = patch_map(found["rollouts"][0])
    # A copy of the state, and hence the brightest by far.
    assert values.argmax(1).tolist() == columns
    assert values.max(1).values.tolist() == pytest.approx([1.0] * 3, abs=0.01)
    for t, place in enumerate(places):
        lit = [
            (grid["image"], grid["name"], *divmod(cell, grid["columns"]))
            for grid in found["grids"]
            for cell, token in enumerate(grid["tokens"])
            if values[t, token] > 0.995
        ]
        assert lit == [place]
