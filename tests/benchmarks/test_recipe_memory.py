"""The memory of the recipes for Qwen2.5-VL: models of the published sizes, and figures as they are written down."""

from pathlib import Path

import pytest
from benchmarks import recipe_memory

from vgpo.recipe.recipe import ON_CPU, load_recipe

# Of the index of each checkpoint's weights, over two bytes.
PARAMETERS = {
    "qwen2_5_vl_3b_virl39k": 3_754_622_976,
    "qwen2_5_vl_7b_virl39k": 8_292_166_656,
    "qwen2_5_vl_32b_virl39k": 33_452_718_336,
}
PAGE = Path(__file__).parents[2] / "docs" / "running.md"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_has_as_many_parameters_as_its_checkpoint(name: str) -> None:
    model = recipe_memory.build_model(load_recipe(name, ON_CPU))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_each_update_fits_a_gpu_of_80_gb_beside_vllm() -> None:
    paths = recipe_memory.recipe_paths()
    assert len(paths) == 6
    for path in paths:
        recipe = load_recipe(path, ON_CPU)
        free = 80e9 * (1 - recipe.config.vllm_gpu_memory_utilization)
        assert recipe_memory.estimate(recipe).total < free, path.stem


def test_the_page_has_the_figures_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    recipe_memory.main()
    assert capsys.readouterr().out in PAGE.read_text(encoding="utf-8")
