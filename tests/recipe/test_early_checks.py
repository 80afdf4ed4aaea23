"""What shows without torch is found at once: fields, numbers, choices, paths and the run folder."""

import ast
import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vgpo.data import FORMATS
from vgpo.evaluation.benchmarks import SUITES
from vgpo.policy.parts import FREEZABLE
from vgpo.recipe import early_checks, field_sources
from vgpo.recipe.early_checks import check_early
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.field_sources import SourceError, fields_of, recipe_fields
from vgpo.recipe.files import REFUSED_KEYS
from vgpo.recipe.parsing import field_names
from vgpo.recipe.recipe import RECIPE_PARTS
from vgpo.rewards import REWARDS
from vgpo.run import RunFolderError
from vgpo.verl.recipe import RECIPE_PARTS as VERL_PARTS

PARTS = {"trl": RECIPE_PARTS, "verl": VERL_PARTS}
CPU_SECONDS = 1.5  # of a command that ends in such an error; with torch it takes seven


def refusal(*words: str, source: str | Path = "quickstart_vgpo") -> str:
    with pytest.raises(RecipeError) as raised:
        check_early(source, words)
    return str(raised.value)


@pytest.mark.parametrize("host", PARTS)
def test_the_source_has_the_fields_of_the_classes_in_their_order(host: str) -> None:
    assert list(recipe_fields(host)) == field_names(PARTS[host])


@pytest.mark.parametrize("host", PARTS)
def test_defaults_in_the_source_are_those_of_the_classes(host: str) -> None:
    fields = recipe_fields(host)
    compared = 0
    for one in (field for kind in PARTS[host] for field in dataclasses.fields(kind) if field.init):
        has_default = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
        assert (fields[one.name].default is not None) == has_default
        if isinstance(one.default, bool | int | float | str | None) and one.name not in ("optim", "max_rollout_bytes"):
            assert ast.literal_eval(fields[one.name].default) == getattr(one.default, "value", one.default)
            compared += 1
    assert compared > 200
    assert fields["max_rollout_bytes"].default == "1024 ** 3"  # the value of a constant, not its name


def test_every_field_has_a_description_and_those_with_names_list_them() -> None:
    fields = recipe_fields()
    assert not [name for name, one in fields.items() if not one.help]
    for name, names in {"rewards": REWARDS, "eval_suite": SUITES, "freeze": FREEZABLE}.items():
        assert all(f"'{one}'" in fields[name].help for one in names), name
    quoted = {word.strip("',;") for word in fields["train_format"].help.split() if word.startswith("'")}
    assert quoted <= FORMATS.keys()


def test_a_class_without_source_is_named() -> None:
    with pytest.raises(SourceError, match="there is no source of nowhere"):
        fields_of("nowhere.config", "Config")


def test_without_sources_nothing_is_checked_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(host: str) -> None:
        raise SourceError(host)

    monkeypatch.setattr(early_checks, "recipe_fields", fail)
    check_early("quickstart_vgpo", ["--strenght", "1"])


@pytest.mark.parametrize("name", ["quickstart_vgpo", "qwen2_5_vl_3b_virl39k", "verl_qwen2_5_vl_7b"])
def test_recipes_of_the_package_pass(name: str) -> None:
    check_early(name, ["--use_cpu", "true", "--no_shuffle_groups", "--learning-rate=1e-6"])


def test_all_unknown_fields_are_in_one_error_each_with_its_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart_vgpo\nlearning_rte: 1\nsede: 2\noutput_dir: x\n")
    assert refusal("--strenght", "1", source=path).splitlines() == [
        f"{path}: output_dir cannot be set: {REFUSED_KEYS['output_dir']}",
        f"{path}: unknown fields 'learning_rte' (did you mean 'learning_rate'?), 'sede' (did you mean 'seed'?)",
        "command line: unknown field 'strenght' (did you mean 'strength'?)",
    ]


def test_a_recipe_for_verl_is_checked_against_the_fields_of_verl(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart_vgpo\nhost: verl\nlearning_rte: 1\n")
    unknown = f"{path}: unknown field 'learning_rte' (did you mean 'learning_rate'?)"
    assert refusal(source=path) == unknown
    assert refusal("--strenght", "1", source=path).splitlines() == [
        unknown, "command line: unknown field 'strenght' (did you mean 'strength'?)"
    ]  # fmt: skip
    assert "num_generations is '8.5', expected a whole" in refusal("--host", "verl", "--num_generations", "8.5")
    monkeypatch.setattr(field_sources, "TRL_CLASSES", ())
    recipe_fields.cache_clear()
    check_early("quickstart_vgpo", ["--host=verl"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "-1"], "command line: strength is -1, expected at least 0"),
        (["--num-generations=8.5"], "command line: num_generations is '8.5', expected a whole number"),
        (["--learning_rate", "fast"], "command line: learning_rate is 'fast', expected a number"),
        (["--loss_type", "dapoo"], "command line: loss_type is 'dapoo' (did you mean 'dapo'?)"),
        (["--host", "ray"], "command line: host is 'ray', expected one of"),
        (["--rewards", "format", "gone.py:f"], "command line: rewards: there is no file 'gone.py' (looked at /"),
        (["--warmup_steps", "1000"], "quickstart_vgpo.yaml and command line: warmup_steps is 1000, expected at most"),
        (["--train_data", "gone.parquet"], "command line: train_data: there is no file or folder 'gone.parquet'"),
        (["--eval_data", "./gone@test"], "command line: eval_data: there is no file or folder './gone'"),
        (["--model_name_or_path", "checkpont"], "there is no folder 'checkpont' (looked at /"),
        (["--model_name_or_path", "a/b/c"], "or name a checkpoint of the hub: a hub id looks like owner/name"),
    ],
)
def test_a_mistake_of_the_command_line_is_not_blamed_on_the_recipe(words: list[str], message: str) -> None:
    assert message in refusal(*words)


def test_a_mistake_of_the_recipe_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart_vgpo\nstrength: -1\n")
    assert refusal("--seed", "3", source=path).startswith(f"{path}: strength is -1")
    check_early(path, ["--strength", "1"])


def test_a_path_with_a_typo_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert "(did you mean 'checkpoints'?)" in refusal("--model_name_or_path", f"{tmp_path}/chekpoints/final")
    (tmp_path / "weights").write_text("")
    assert "is a file, expected the folder of a checkpoint" in refusal("--model_name_or_path", f"{tmp_path}/weights")


def test_what_can_be_on_the_hub_is_left_to_it() -> None:
    check_early("quickstart_vgpo", ["--model_name_or_path", "Qwen/Qwen2.5-VL-7B-Instruct"])
    check_early("quickstart_vgpo", ["--train_data", "owner/name/config (10 options)@test"])


def test_a_taken_run_folder_is_found_unless_it_is_resumed_or_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("")
    words = ["--run_dir", str(tmp_path)]
    with pytest.raises(RunFolderError, match="already contains a run"):
        check_early("quickstart_vgpo", words, trains=True)
    check_early("quickstart_vgpo", words)
    check_early("quickstart_vgpo", [*words, "--resume", "true"], trains=True)
    monkeypatch.setenv("RANK", "1")
    check_early("quickstart_vgpo", words, trains=True)
    monkeypatch.delenv("RANK")
    (tmp_path / ".lock").write_text("")
    check_early("quickstart_vgpo", words, trains=True)


def cpu_seconds(*words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "vgpo.cli", *words], capture_output=True, text=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "qickstart_vgpo"), "no such recipe file (did you mean 'quickstart_vgpo'?)"),
        (("train", "quickstart_vgpo", "--learning_rte", "1"), "unknown field 'learning_rte'"),
        (("train", "verl_qwen2_5_vl_7b", "--learning_rte", "1"), "unknown field 'learning_rte'"),
        (("doctor", "quickstart_vgpo", "--strength", "-1"), "strength is -1"),
        (("eval", "runs/none/checkpoints/final", "--data", "toy:test"), "there is no folder"),
    ],
)
def test_a_mistake_is_reported_before_torch_is_imported(words: Any, message: str) -> None:
    seconds, done = cpu_seconds(*words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert seconds < CPU_SECONDS
