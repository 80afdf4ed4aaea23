"""Recipes: every shipped one loads, and a mistake is named with its cure."""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from transformers import training_args
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import recipe_folder
from vgpo.recipe.parsing import RecipeParser
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.run_plan import RunPlan

SHIPPED = sorted(set(recipe_folder().glob("*.yaml")) - set(recipe_folder().glob("verl_*")))
ON_A_LAPTOP = ["--use_cpu", "true"]
PAPER_SIZED = [path for path in SHIPPED if "virl39k" in path.stem]
OF_THE_PAPER = [*PAPER_SIZED, *(path for path in SHIPPED if "7b" in path.stem and path not in PAPER_SIZED)]


def test_the_package_has_its_recipes() -> None:
    assert {path.stem for path in SHIPPED} == {
        "quickstart_dapo",
        "quickstart_vgpo",
        "qwen2_5_vl_3b_lora_1gpu",
        "qwen2_5_vl_3b_virl39k",
        "qwen2_5_vl_7b_virl39k",
        "qwen2_5_vl_7b_geometry3k",
        "qwen2_5_vl_7b_mmk12",
        "qwen2_5_vl_32b_virl39k",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_loads_and_keeps_groups_whole(path: Path) -> None:
    recipe = load_recipe(path, ON_A_LAPTOP)
    plan = RunPlan.of(recipe.config, 40_000, recipe.run.num_processes or 1)
    assert plan.batch.groups_fit_micro_batch
    assert recipe.config.dynamic_sampling
    assert recipe.run.run_dir == str(Path("runs", path.stem).absolute())
    assert recipe.config.output_dir == f"{recipe.run.run_dir}/checkpoints"
    assert "# Hardware:" in path.read_text()


# 38,870 prompts make 75 generations an epoch, and two epochs the paper's "about 150"; 2,101 make 4, and 15 epochs 60.
GENERATIONS = {"virl39k": (38_870, 150), "geometry3k": (2_101, 60), "mmk12": (15_616, 120)}


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=lambda path: path.stem)
def test_recipes_of_the_paper_have_its_settings(path: Path) -> None:
    recipe = load_recipe(path, ON_A_LAPTOP)
    num_prompts, generations = GENERATIONS[path.stem.rpartition("_")[2]]
    plan = RunPlan.of(recipe.config, num_prompts, recipe.run.num_processes or 1)
    assert (plan.batch.prompts, plan.batch.group_size, plan.batch.updates) == (512, 8, 4)
    assert plan.batch.rollouts_per_update == 128 * 8
    assert plan.generations == generations
    config = recipe.config
    assert recipe.run.max_prompt_length == config.vllm_max_model_length - config.max_completion_length == 4096
    assert (config.learning_rate, config.weight_decay, config.lr_scheduler_type) == (1e-6, 1e-2, "constant")
    assert (config.epsilon, config.epsilon_high, config.beta, config.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert (config.temperature, config.top_p, config.max_completion_length) == (1.0, 0.99, 2048)
    assert (recipe.run.min_pixels, recipe.run.max_pixels) == (262_144, 4_194_304)
    assert (config.strength, config.tail_ratio, config.gate_ratio, config.schedule) == (0.3, 0.5, 0.2, "linear")
    assert "not measured" in path.read_text()


def test_an_extended_recipe_gives_what_is_not_set(write_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_recipe("seed: 3\nalarm_answers_cut: 0.25\nlog_rollouts_steps: 7")
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {path.name}\nalarm_truncation: 0.5\nseed: 4")  # beside it, whatever the folder
    config = load_recipe(child).config
    assert (config.seed, config.alarm_truncation, config.log_rollouts_steps) == (4, 0.5, 7)
    assert load_recipe(child).run.run_dir.endswith("runs/child")
    child.write_text("extends: quickstart_dapo\nseed: 4")
    assert load_recipe(child).run.train_data == "toy:train"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("extends: 3", "child.yaml: extends is 3, expected the path or the name of a recipe"),
        ("extends: quickstart_dap", "child.yaml: extends: quickstart_dap: no such recipe file (did you mean"),
        (
            "extends: qwen2_5_vl_3b_virl39k",
            "extends qwen2_5_vl_3b_virl39k, which extends 'qwen2_5_vl_7b_virl39k'; extend",
        ),
        ("extends: parent.yaml", "parent.yaml: unknown field 'sed' (did you mean 'seed'"),
    ],
)
def test_a_recipe_that_cannot_be_extended_is_named(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "parent.yaml").write_text("sed: 1")
    child = tmp_path / "child.yaml"
    child.write_text(content)
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load_recipe(child)


def test_the_two_quickstart_recipes_differ_in_the_shaping_alone() -> None:
    dapo, vgpo = (load_recipe(f"quickstart_{name}").config.to_dict() for name in ("dapo", "vgpo"))
    assert {key for key in dapo if dapo[key] != vgpo[key]} == {"shaping", "output_dir"}


def test_the_command_line_overrides_the_recipe(write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe("learning_rate: 1e-4\nrewards: accuracy\nnum_train_epochs: 2\n")
    recipe = load_recipe(path, ["--learning-rate=3e-5", "--no-shuffle-groups", "--rewards", "format", "accuracy"])
    assert recipe.config.learning_rate == 3e-5
    assert not recipe.config.shuffle_groups
    assert recipe.run.rewards == ["format", "accuracy"]
    recipe = load_recipe(path)
    assert recipe.config.learning_rate == 1e-4
    assert recipe.config.shuffle_groups
    assert recipe.run.rewards == ["accuracy"]
    assert recipe.config.num_train_epochs == 2


def test_names_of_version_0_1_are_taken_with_a_warning(write_recipe: Callable[[str], Path], caplog) -> None:
    recipe = write_recipe("alarm_answers_cut: 0.25")
    config = load_recipe(recipe, ["--alarm_groups_alike=0.5"]).config
    assert (config.alarm_truncation, config.alarm_zero_reward_std) == (0.25, 0.5)
    assert load_recipe(recipe, ["--alarm-groups-alike", "0.75"]).config.alarm_zero_reward_std == 0.75
    assert "alarm_answers_cut is now called alarm_truncation" in caplog.text
    with pytest.raises(RecipeError, match="alarm_truncation are the same field; remove alarm_answers_cut"):
        load_recipe(write_recipe("alarm_answers_cut: 0.25\nalarm_truncation: 0.5"))


def test_a_recipe_of_the_package_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart_vgpo").config.shaping == "vgpo"
    assert load_recipe("recipes/quickstart_dapo.yaml").config.shaping == "none"


@pytest.mark.parametrize(
    ("lines", "words", "expected"),
    [
        ("learning_rte: 1", [], ["recipe.yaml", "'learning_rte'", "did you mean 'learning_rate'"]),
        ("", ["--strenght", "1"], ["command line", "'strenght'", "did you mean 'strength'"]),
        ("zzzzqqq: 1", [], ["recipe.yaml", "unknown field 'zzzzqqq'"]),
        ("output_dir: x", [], ["recipe.yaml", "output_dir", "set run_dir instead"]),
        ("", ["--resume_from_checkpoint", "x"], ["command line", "set resume: true"]),
        ("", ["7"], ["command line", "unexpected '7'"]),
        ("num_generations: 8.5", [], ["recipe.yaml", "num_generations", "invalid int value: '8.5'"]),
        ("", ["--num_generations", "many"], ["num_generations", "invalid int value: 'many'"]),
        ("num_generations: 1", [], ["num_generations", "2"]),
        ("strength: -1", [], ["recipe.yaml", "strength", "-1"]),
        ("rewards: [accurcy]", [], ["'accurcy'", "did you mean 'accuracy'"]),
        ("{min_pixels: 9, max_pixels: 5}", [], ["not valid YAML"]),
        ("seed: 1\nbeta: 0\nseed: 2", [], ["recipe.yaml", "'seed' occurs twice; keep one of them", "line 9"]),
        (
            "rewards: [accuracy, format]\nfilter_reward: accuracy",
            [],
            ["recipe.yaml", "filter_reward='accuracy' is not one of", "['accuracy_reward', 'format_reward']"],
        ),
        ("rewards: []", [], ["recipe.yaml", "rewards is empty", "[accuracy]"]),
        ("rewards: [null]", [], ["recipe.yaml", "rewards has None in its list, expected names"]),
        ("rewards: [accuracy, 1]", [], ["rewards has 1 in its list"]),
        ("lora_target_modules: [on]", [], ["lora_target_modules has True in its list", "put it in quotes"]),
        ("temperature: 0", [], ["recipe.yaml", "temperature is 0, expected a number above 0"]),
        ("", ["--temperature", "-1"], ["temperature is -1"]),
        ("temperature: .nan", [], ["temperature is nan"]),
        ("top_p: 2", [], ["top_p is 2, expected a number above 0 and at most 1"]),
        ("top_p: 0", [], ["top_p is 0"]),
        ("num_train_epochs: 0", [], ["num_train_epochs is 0"]),
        ("lora_r: 0", [], ["lora_r is 0, expected at least 1"]),
        ("eval_limit: 0", [], ["eval_limit", "at least 1"]),
        ("train_data: [x]", [], ["recipe.yaml", "train_data is a list (['x'])", "expected a single value"]),
        ("learning_rate: null", [], ["recipe.yaml", "learning_rate is empty", "remove the line"]),
        ("", ["--per_device_train_batch_size", "0"], ["command line: per_device_train_batch_size is 0"]),
        ("gradient_accumulation_steps: 0", [], ["gradient_accumulation_steps is 0", "at least 1"]),
        ("", ["--max_steps", "0"], ["command line: max_steps is 0", "at least 1, or -1"]),
        ("model_name_or_path: null", [], ["model_name_or_path is missing", "'toy'"]),
    ],
)
def test_a_mistake_is_named_with_its_cure(
    write_recipe: Callable[[str], Path], lines: str, words: list[str], expected: list[str]
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(write_recipe(lines), words)
    for part in expected:
        assert part in str(raised.value)


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match=r"list\.yaml: expected a mapping.*found list"):
        load_recipe(path)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("run_dir: größe".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml: not UTF-8 text .* at byte 11\); save it as UTF-8"):
        load_recipe(path)


def test_bf16_without_a_gpu(write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(RecipeError, match=r"command line: bf16 needs a GPU \(or use_cpu\): set bf16: false$"):
        load_recipe(write_recipe(""), ["--use_cpu", "false", "--bf16", "true"])


def test_the_recipe_for_one_gpu_trains_adapters() -> None:
    recipe = load_recipe("qwen2_5_vl_3b_lora_1gpu", ON_A_LAPTOP)
    plan = RunPlan.of(recipe.config, 2_101, 1)  # Geometry3K's training set
    assert (plan.batch.prompts, plan.batch.rollouts, plan.batch.updates) == (32, 256, 2)
    assert plan.steps == 5 * 2 * (2_101 // 32)
    assert recipe.model.use_peft
    assert recipe.model.dtype == "bfloat16"


def test_deepspeed_that_is_not_installed_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "zero2.json").write_text("{}")

    def look_for_deepspeed(self: RecipeParser, **options: Any) -> None:
        raise PackageNotFoundError("deepspeed>=0.9.3")  # as transformers does for this field

    monkeypatch.setattr(RecipeParser, "parse_args_into_dataclasses", look_for_deepspeed)
    with pytest.raises(RecipeError, match=r"deepspeed is not installed: pip install 'trl\[deepspeed\]'"):
        load_recipe("quickstart_vgpo", ["--deepspeed", str(tmp_path / "zero2.json")])


def test_a_missing_file_names_the_nearest_recipe() -> None:
    with pytest.raises(RecipeError, match=r"quickstart_vgqo: no such recipe file \(did you mean 'quickstart_vgpo'"):
        load_recipe("quickstart_vgqo")
    with pytest.raises(RecipeError, match=r"nowhere/x\.yaml: no such recipe file; the package has"):
        load_recipe("nowhere/x.yaml")


def test_the_command_ends_with_the_message_and_no_traceback() -> None:
    done = CliRunner().invoke(app, ["train", "--config", "quickstart_vgpo", "--learning_rte", "1"])
    assert done.exit_code == 2
    assert "error: command line: unknown field 'learning_rte' (did you mean 'learning_rate'?)" in done.stderr
    assert "Traceback" not in done.output


def test_a_bare_off_is_told_from_a_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model_name_or_path: toy\ntrain_data: toy:train\nalarms: off\n")
    with pytest.raises(
        RecipeError, match=r"alarms is False, which is how YAML reads a bare on, off.*put it in quotes"
    ):
        load_recipe(path, ON_A_LAPTOP)
