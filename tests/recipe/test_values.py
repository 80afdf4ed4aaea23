"""Every field of a recipe refuses what makes no sense, in one line that names it; YAML's surprises are errors."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from benchmarks.fault_kinds import BAD_VALUES
from rich.console import Console
from trl import GRPOTrainer

from vgpo.recipe.checks import raise_failed_checks
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import REFUSED_KEYS, recipe_folder
from vgpo.recipe.parsing import field_names, field_types
from vgpo.recipe.recipe import RECIPE_PARTS, load_recipe, recipe_from
from vgpo.recipe.setup import Setup
from vgpo.recipe.values import CHOICES, MAX_TEXT, RANGES

BASE = {
    "model_name_or_path": "toy",
    "train_data": "toy:train",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "alarms": "warn",
}
NESTED: list[Any] = []
for _ in range(500):
    NESTED = [NESTED]
ENDLESS: dict[str, Any] = {}
ENDLESS["again"] = ENDLESS

FIELDS = sorted(set(field_names(RECIPE_PARTS)) - set(REFUSED_KEYS))
TYPES = field_types(RECIPE_PARTS)


def kinds(name: str) -> set[Any]:
    return {TYPES[name], *get_args(TYPES[name])}


NUMBERS = [
    name for name in FIELDS if kinds(name) & {int, float} and str not in kinds(name) and bool not in kinds(name)
]
TEXTS = [name for name in FIELDS if str in kinds(name)]
# Values that are right for some number: of the first, all but a few; of the second, -1 has a meaning.
MINUS_ONE = {"max_steps", "local_rank", "top_k", "entropy_coef", "entropy_coef_min", "entropy_coef_max"}
MINUS_ONE |= {"entropy_target"}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(values: dict[str, Any], words: list[str] | None = None) -> str | None:
    """The error of a recipe, None if it is taken."""
    try:
        recipe_from({**BASE, **values}, words or [], where="recipe.yaml")
    except RecipeError as error:
        return str(error)
    return None


def check_refused(name: str, said: str | None) -> None:
    assert said is not None, f"{name} is taken"
    assert name in said, said
    assert "\n" not in said
    assert len(said) < 1_000


NOT_A_NUMBER = [float("nan"), float("inf"), "many", [1], NESTED, 10**40, -1e300]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused_by_name(name: str) -> None:
    for value in NOT_A_NUMBER:
        check_refused(name, refusal({name: value}))
    for text in ("nan", "", "1e400", "9" * 5000):
        check_refused(name, refusal({}, [f"--{name}={text}"]))
    if name not in MINUS_ONE:
        check_refused(name, refusal({name: -1}))
    check_refused(name, refusal({name: True}))
    if float not in kinds(name):
        check_refused(name, refusal({name: 2.5}))


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_makes_no_sense_is_refused_by_name(name: str) -> None:
    for value in ("x" * (MAX_TEXT + 1), "a\x00b", "a\x1bb"):
        check_refused(name, refusal({name: value}))
    for value in (NESTED, ENDLESS):
        check_refused(name, refusal({name: value}))


@pytest.mark.parametrize("name", ["train_data", "eval_data", "run_dir", "template", "model_name_or_path", "rewards"])
def test_a_path_that_no_file_system_takes_is_refused_by_name(name: str) -> None:
    value: Any = f"{'x' * 300}.py:f" if name == "rewards" else f"a/{'x' * 300}"
    check_refused(name, refusal({name: [value] if name == "rewards" else value}))


@pytest.mark.parametrize("name", [name for name in FIELDS if bool in kinds(name) and str not in kinds(name)])
def test_a_switch_is_on_or_off(name: str) -> None:
    for value in (3, 0.5, "perhaps", [True], {"a": True}):
        check_refused(name, refusal({name: value}))


def test_ranges_are_of_fields_and_hold_their_defaults() -> None:
    assert set(RANGES) <= set(field_names(RECIPE_PARTS))
    defaults = {f.name: f.default for kind in RECIPE_PARTS for f in dataclasses.fields(kind)}
    off = {name for name, allowed in RANGES.items() if isinstance(defaults[name], int | float)
           and defaults[name] not in allowed}  # fmt: skip
    assert off == set()


SWITCHES_LEARNING_OFF = {
    "learning_rate": 0,
    "adam_beta1": 1,
    "lora_alpha": 0,
    "lora_dropout": 1,
    "epsilon": 0,
    "save_steps": 0,
    "reward_weights": [0],
}


@pytest.mark.parametrize(("name", "value"), SWITCHES_LEARNING_OFF.items())
def test_a_number_that_switches_learning_or_saving_off_is_refused_with_the_reason(name: str, value: Any) -> None:
    said = refusal({name: value})
    check_refused(name, said)
    assert any(reason in str(said) for reason in ("learned", "no effect", "clipped", "no checkpoint"))


def test_weights_and_warmup_that_cannot_be() -> None:
    assert "numbers from -1e6 to 1e6" in str(refusal({"reward_weights": [1e7]}))
    assert "reward_weights has True" in str(refusal({"reward_weights": [True]}))
    assert "reward_weights has 'a'" in str(refusal({"reward_weights": ["a"]}))
    assert "reward_weights is nan" in str(refusal({"reward_weights": [float("nan")]}))
    assert "learning_rate would never be reached" in str(refusal({"warmup_steps": 11, "max_steps": 10}))
    assert refusal({"warmup_steps": 10, "max_steps": 10}) is None


@pytest.mark.parametrize("words", [["--lr_scheduler_kwargs", '{"min_lr": NaN}'], []])
def test_numbers_inside_of_mappings_are_finite(words: list[str]) -> None:
    values = {} if words else {"lr_scheduler_kwargs": {"min_lr": float("nan")}}
    said = refusal({"lr_scheduler_type": "cosine_with_min_lr", **values}, words)
    where = "command line" if words else "recipe.yaml"
    assert said == f"{where}: lr_scheduler_kwargs.min_lr is nan, expected a finite number"


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_name_that_a_library_would_refuse_later_is_refused_at_once(name: str) -> None:
    said = refusal({name: "nonesuch"})
    check_refused(name, said)
    assert f"expected one of ['{CHOICES[name][0]}'" in str(said)


def test_every_loss_of_the_library_is_a_choice() -> None:
    source = inspect.getsource(GRPOTrainer)
    listed = " ".join(re.findall(r"loss_type in \[(.*?)\]", source))
    compared = {*re.findall(r'loss_type == "(\w+)"', source), *re.findall(r'"(\w+)"', listed)}
    assert "dapo" in compared
    assert compared <= set(CHOICES["loss_type"])


@pytest.mark.parametrize("name", [name for name in TEXTS if "dict" in str(TYPES[name])])
def test_a_text_where_a_mapping_is_expected_is_refused(name: str) -> None:
    for text in ("many", "[1]", "{broken", "{'a': 1}", "nowhere.json"):
        check_refused(name, refusal({}, [f"--{name}={text}"]))


def test_numbers_inside_of_mappings_are_numbers(recipe_file: Callable[[str], Path]) -> None:
    lines = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr: 1e-7\n"
    config = load_recipe(recipe_file(yaml.safe_dump(BASE) + lines)).config
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-7}


REFUSED_BY_LIBRARIES = {
    "min_lr": ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "x"}}, "min_lr"),
    "no such argument": ({"lr_scheduler_kwargs": {"minlr": 1.0}}, "lr_scheduler_kwargs {'minlr': 1.0}"),
    "generation": ({"generation_kwargs": {"suppres_tokens": [1]}}, "(did you mean 'suppress_tokens'?)"),
    "optimizer": ({"optim_args": "beta1"}, "optim_args: 'beta1'"),
}


@pytest.mark.parametrize(("values", "named"), REFUSED_BY_LIBRARIES.values(), ids=REFUSED_BY_LIBRARIES)
def test_what_a_library_would_refuse_at_the_first_step_is_found_before_a_model_is_loaded(
    tmp_path: Path, values: dict[str, Any], named: str
) -> None:
    setup = Setup(recipe_from({**BASE, **values}, where="recipe.yaml"), tmp_path)
    with pytest.raises(RecipeError, match=re.escape(named)):
        raise_failed_checks(setup, ["library settings"], Console(quiet=True))
    setup = Setup(recipe_from(BASE, where="recipe.yaml"), tmp_path)
    raise_failed_checks(setup, ["library settings"], Console(quiet=True))


@pytest.mark.parametrize("name", ["run_name", "run_dir", "project"])
def test_names_are_of_one_line(name: str) -> None:
    check_refused(name, refusal({name: "a\nb"}))


def test_names_of_a_fixed_set_are_listed() -> None:
    said = refusal({"lr_scheduler_type": "cosin"})
    assert "lr_scheduler_type is 'cosin' (did you mean 'cosine'?)" in str(said)


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_the_bad_values_of_the_campaign_are_refused(name: str, value: str) -> None:
    check_refused(name, refusal({}, [f"--{name}={value}"]))


def test_paths_are_absolute_from_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_from({**BASE, "run_dir": "here"}, where="recipe.yaml")
    assert recipe.run.run_dir == str(tmp_path / "here")
    assert recipe.config.output_dir == str(tmp_path / "here" / "checkpoints")


# YAML

SURPRISES = {
    "octal": ("max_steps: 010", ["line 3", "max_steps is 010, which YAML reads as an octal number"]),
    "octal in a list": ("reward_weights: [010]", ["reward_weights is 010"]),
    "octal in a list of lists": ("reward_weights: [[010]]", ["reward_weights is 010"]),
    "base 60": ("max_steps: 1:30", ["max_steps is 1:30, which YAML reads as a number of base 60"]),
    "base 60 with a fraction": ("learning_rate: 1:30.5", ["learning_rate is 1:30.5"]),
    "off": ("alarms: off", ["alarms is False", "put it in quotes"]),
    "too many digits": (f"max_steps: {'9' * 5000}", ["not valid YAML", "digits"]),
    "brackets without end": ("rewards: " + "[" * 20_000, ["not valid YAML"]),
    "a list that holds itself": ("rewards: &a [*a]", ["rewards"]),
    "a mapping that holds itself": ("lr_scheduler_kwargs: &a {b: *a}", ["lr_scheduler_kwargs"]),
    "code": ("seed: !!python/object/apply:os.getcwd []", ["not valid YAML", "python/object/apply"]),
    "bytes": ("run_name: !!binary aGk=", ["run_name is a bytes (b'hi')"]),
    "a set": ("rewards: !!set {accuracy}", ["rewards is a set"]),
    "a key that is a number": ("1: 2", ["unknown field 1"]),
    "a key that is nothing": ("null: 2", ["unknown field None"]),
    "a key that is a list": ("[a]: 2", ["not valid YAML"]),
    "two documents": ("---\nseed: 1", ["not valid YAML", "another document"]),
    "a control character": ("run_name: \x07", ["not valid YAML"]),
    "an anchor that grows": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefghi")),
        ["unknown fields 'a', 'b'"],
    ),
    "an anchor that grows in a known field": (
        "lr_scheduler_kwargs:\n  a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"  {b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefghi")),
        ["lr_scheduler_kwargs has", "more than 10000 values"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), SURPRISES.values(), ids=SURPRISES)
def test_what_yaml_reads_otherwise_than_it_looks_is_an_error_of_one_line(
    recipe_file: Callable[[str], Path], lines: str, expected: list[str]
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe_file(f"model_name_or_path: toy\ntrain_data: toy:train\n{lines}"), ["--use_cpu", "true"])
    said = str(raised.value)
    assert all(part in said for part in expected), said
    assert "\n" not in said
    assert len(said) < 1_000


@pytest.mark.parametrize("date", ["2024-01-01", "2024-13-45", "2024-01-01T25:61:61Z"])
def test_a_date_is_the_text_that_it_is(recipe_file: Callable[[str], Path], date: str) -> None:
    path = recipe_file(yaml.safe_dump(BASE) + f"run_name: {date}\n")
    assert load_recipe(path).config.run_name == date


def test_what_is_in_quotes_and_plain_numbers_are_taken(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(
        "\ufeff" + yaml.safe_dump(BASE) + "run_name: '010'\nmax_steps: 1_000\nlearning_rate: 1e-6\nseed: 0\n"
    )
    config = load_recipe(path).config
    assert (config.run_name, config.max_steps, config.learning_rate, config.seed) == ("010", 1000, 1e-6, 0)


def test_a_recipe_is_a_small_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    (tmp_path / "folder.yaml").mkdir()
    for name, reason in (
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("large", "at most 1,048,576"),
    ):
        with pytest.raises(RecipeError, match=rf"{name}\.yaml: .*{reason}"):
            load_recipe(tmp_path / f"{name}.yaml")
    for source in ("x" * 5000, "a\x00b", ""):
        with pytest.raises(RecipeError, match=r"no such recipe file|not a regular file"):
            load_recipe(source)
    assert all(load_recipe(path, ["--use_cpu", "true"]) for path in recipe_folder().glob("*.yaml"))
