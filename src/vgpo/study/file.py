"""Study files: methods x settings x seeds over one recipe, and what is compared, checked before anything runs."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vgpo.evaluation.errors import EvaluationError
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import check_keys, find_recipe, read_fields, read_mapping, with_current_names
from vgpo.recipe.parsing import check_values, field_names
from vgpo.recipe.recipe import RECIPE_PARTS, Recipe, recipe_from
from vgpo.run.storage import write_file
from vgpo.study.results import INITIAL, Comparison
from vgpo.study.suite import StudySuite, read_suite
from vgpo.text import did_you_mean

RECIPE, LAUNCH, SUITE, HELD_OUT = "recipe", "launch", "suite", "held_out_sets"
KEYS = (RECIPE, LAUNCH, SUITE, HELD_OUT, "base", "seeds", "common", "methods", "settings", "comparisons")
KEYS_OF_COMPARISON = ("question", "base", "methods", "seeds", "settings")
MAX_METHODS = 8  # per comparison: more lines cannot be distinguished
MAX_SEED = 2**32  # NumPy takes no larger one
ONLY_SETTING = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")  # is a folder's name too

# Recipe fields that the study sets for every run.
SET_BY_STUDY = {
    "seed": "list the seeds under 'seeds'",
    "data_seed": "the order of the data follows the seed of a run",
    "run_dir": "each run has a folder in that of --out",
    "resume": "interrupted runs are always resumed",
    "allow_changes": "a study is made of equal runs",
    "evaluate_before": "the start model is evaluated once per setting",
}
# Fields that all methods of a setting share: start model, data and their order, length of training, questions,
# decoding and rewards.
CONTROLLED_FIELDS = (
    "model_name_or_path", "model_revision", "dtype", "use_peft", "freeze", "lora_", "load_in_", "train_data",
    "train_format", "eval_data", "eval_format", "eval_limit", "eval_suite", "columns", "eval_columns",
    "faulty_rows", "template", "chat_template", "min_pixels", "max_pixels",
    "max_prompt_length", "max_completion_length", "num_generations", "per_device_train_batch_size",
    "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size", "num_iterations", "max_steps",
    "num_train_epochs", "rewards", "reward_weights", "filter_reward", "shuffle_dataset", "num_processes",
    "logging_steps", "logging_strategy", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "generation_kwargs", "per_device_eval_batch_size",
)  # fmt: skip


class StudyError(ValueError):
    """A study file or its folder that cannot be used; the message names file, key and fix."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: its place in the study and its complete recipe.

    Attributes:
        setting: Name of the setting.
        method: Name of the method, or `INITIAL` for the model before training.
        seed: Seed of the run.
        values: All fields of its recipe, the seed included.
        max_steps: Optimizer steps, None where the recipe counts epochs.
        launch: Words before `-m vgpo.cli train` that start its training in several processes; none for one process.
        held_out_sets: By name, further sets on which the trained model is evaluated, as in `eval_data`.
    """

    setting: str
    method: str
    seed: int
    values: dict[str, Any]
    max_steps: int | None
    launch: tuple[str, ...] = ()
    held_out_sets: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder below `runs`, with `/` between the parts."""
        return f"{self.setting}/{self.method}" + ("" if self.is_start else f"/seed-{self.seed}")

    @property
    def is_start(self) -> bool:
        return self.method == INITIAL


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        path: Of its file.
        comparisons: What is compared.
        recipes: By setting and method, `INITIAL` among them; of any seed.
        runs: In the order of the comparisons, seed by seed, so that all methods grow together.
        suite: The benchmarks on which every run is evaluated, if there are any.
    """

    path: Path
    comparisons: list[Comparison]
    recipes: dict[tuple[str, str], Recipe]
    runs: list[PlannedRun]
    suite: StudySuite | None = None


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: Missing file, a key that is unknown, missing, empty or would make runs that cannot be compared,
            two methods that are the same, or a recipe that cannot be run; names the key.
    """
    try:
        values = read_study(path)
        recipes = fields_of_recipes(values, path)
        check_overrides(values, recipes, path)
        comparisons = read_comparisons(values, path)
        suite = None if values.get(SUITE) is None else read_suite(values[SUITE], f"{path}: {SUITE}")
    except (RecipeError, EvaluationError) as error:
        raise StudyError(str(error)) from error
    fields = fields_by_place(values, recipes, comparisons)
    checked = {place: read_recipe(one, f"{path}: {run_label(*place)}") for place, one in fields.items()}
    for (setting, method), recipe in checked.items():
        if method != INITIAL:
            check_comparable(recipe, f"{path}: {run_label(setting, method)}")
    return Study(path, comparisons, checked, plan(fields, checked, comparisons, values), suite)


def fields_of_recipes(values: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """By setting, the fields of its recipe: the one that it names, else the study's.

    Raises:
        StudyError, RecipeError: There is no such recipe, or it has an unknown field.
    """
    found = {}
    for setting, name in values["recipes"].items():
        if not isinstance(name, str):
            raise StudyError(f"{path}: settings: {setting}: {RECIPE} is {name!r}, expected a name")
        found[setting] = with_current_names(read_fields(find_recipe(name), field_names(RECIPE_PARTS)))
        check_fields(found[setting], f"recipe {name}")  # the seed of the study replaces it
    return found


def read_study(path: Path) -> dict[str, Any]:
    """The validated keys of the file, with defaults filled in.

    Under `recipes`, `launches` and `sets` is the recipe of each setting, how its runs are started, and on which
    further sets they are evaluated.
    """
    if not path.is_file():
        raise StudyError(f"{path}: no such study file; name a YAML file such as those in studies/")
    values = read_mapping(path)
    for key in values:
        if key not in KEYS:
            raise StudyError(f"{path}: unknown key {key!r}{did_you_mean(str(key), KEYS)}; it takes {', '.join(KEYS)}")
    for key in (RECIPE, "seeds", "methods"):
        if not values.get(key) and values.get(key) != 0:
            raise StudyError(f"{path}: {key} is missing or empty")
    if not isinstance(values[RECIPE], str):
        raise StudyError(f"{path}: {RECIPE} is {values[RECIPE]!r}, expected a name")
    values = {**values, "common": values.get("common") or {}, "settings": values.get("settings") or {ONLY_SETTING: {}}}
    for key in ("common", "methods", "settings"):
        check_mapping(values[key], f"{path}: {key}")
    values["common"] = with_current_names(values["common"])
    check_seeds(values["seeds"], f"{path}: seeds")
    for key in ("methods", "settings"):
        check_names(list(values[key]), f"{path}: {key}")
    if INITIAL in values["methods"]:
        raise StudyError(f"{path}: methods: {INITIAL!r} stands for the model before training; rename the method")
    for key in ("methods", "settings"):
        values[key] = {name: overrides or {} for name, overrides in values[key].items()}
        for name, overrides in values[key].items():
            check_mapping(overrides, f"{path}: {key}: {name}")
        values[key] = {name: with_current_names(overrides) for name, overrides in values[key].items()}
    settings = values["settings"].items()
    values["recipes"] = {name: one.pop(RECIPE, values[RECIPE]) for name, one in settings}
    launches = {name: one.pop(LAUNCH, values.get(LAUNCH)) for name, one in settings}
    sets = {name: one.pop(HELD_OUT, values.get(HELD_OUT)) or {} for name, one in settings}
    values["launches"] = {name: read_launch(launch, f"{path}: {LAUNCH}") for name, launch in launches.items()}
    values["sets"] = {
        name: read_held_out_sets(one, f"{path}: settings: {name}: {HELD_OUT}") for name, one in sets.items()
    }
    return values


def read_held_out_sets(sets: Any, where: str) -> dict[str, str]:
    """By name, further sets of held-out questions."""
    check_mapping(sets, where)
    check_names(list(sets), where)
    for name, source in sets.items():
        if not isinstance(source, str):
            raise StudyError(f"{where}: {name} is {source!r}, expected a dataset as in eval_data")
    return dict(sets)


def read_launch(command: Any, where: str) -> tuple[str, ...]:
    """The words of a command that starts several processes; none where there is no command."""
    if command is None:
        return ()
    try:
        words = tuple(shlex.split(command)) if isinstance(command, str) else ()
    except ValueError:  # an unclosed quote
        words = ()
    if not words:
        raise StudyError(f"{where} is {command!r}, expected a command such as 'accelerate launch --config_file FILE'")
    return words


def check_mapping(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise StudyError(f"{where} is a {type(value).__name__} ({value!r}), expected 'name: value' lines")


def check_seeds(seeds: Any, where: str) -> None:
    whole = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < MAX_SEED for seed in seeds)
    if not whole or not seeds:
        raise StudyError(f"{where} is {seeds!r}, expected a list of whole numbers such as [0, 1, 2, 3, 4], below 2^32")
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"{where} names one twice ({seeds}); another run with the same seed is not evidence")


def check_names(names: list[Any], where: str) -> None:
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise StudyError(f"{where}: the name {name!r} becomes a folder; use up to 60 letters, digits and _ . + -")
    lowered = [name.lower() for name in names]
    twice = [name for name in names if lowered.count(name.lower()) > 1]
    if twice:
        raise StudyError(f"{where}: {twice[0]} and {twice[1]} differ only in case; rename one")


def read_comparisons(values: Mapping[str, Any], path: Path) -> list[Comparison]:
    """The comparisons of the file; by default, all methods with `base`."""
    given = values.get("comparisons")
    if not given:
        return [read_comparison(path.stem, {"base": values.get("base")}, values, str(path))]
    check_mapping(given, f"{path}: comparisons")
    if "base" in values:
        raise StudyError(f"{path}: base: each comparison has its own; remove this one")
    check_names(list(given), f"{path}: comparisons")
    found = []
    for name, keys in given.items():
        where = f"{path}: comparisons: {name}"
        check_mapping(keys, where)
        for key in keys:
            if key not in KEYS_OF_COMPARISON:
                hint = did_you_mean(str(key), KEYS_OF_COMPARISON)
                raise StudyError(f"{where}: unknown key {key!r}{hint}; it takes {', '.join(KEYS_OF_COMPARISON)}")
        found.append(read_comparison(name, keys, values, where))
    for key in ("methods", "settings"):
        unused = [name for name in values[key] if not any(name in vars(one)[key] for one in found)]
        if unused:
            raise StudyError(f"{path}: {key}: {', '.join(unused)} in no comparison; add to one, or remove")
    return found


def read_comparison(name: str, keys: Mapping[str, Any], values: Mapping[str, Any], where: str) -> Comparison:
    """One comparison; methods, seeds and settings default to all."""
    base, question = keys.get("base"), keys.get("question")
    if base is None:
        raise StudyError(f"{where}: base is missing: name the method that the others are compared with")
    if question is not None and not isinstance(question, str):
        raise StudyError(f"{where}: question is {question!r}, expected a sentence")
    seeds = keys.get("seeds", values["seeds"])
    check_seeds(seeds, f"{where}: seeds")
    names = {}
    for key in ("methods", "settings"):
        names[key] = keys.get(key, list(values[key]))
        if not isinstance(names[key], list) or not names[key]:
            raise StudyError(f"{where}: {key} is {names[key]!r}, expected a list of names")
        for one in names[key]:
            check_known(one, values[key], f"{where}: {key}")
        if len(set(names[key])) < len(names[key]):
            raise StudyError(f"{where}: {key} names one twice ({', '.join(names[key])})")
    check_known(base, names["methods"], f"{where}: base")
    if len(names["methods"]) > MAX_METHODS:
        raise StudyError(f"{where}: {len(names['methods'])} methods, expected at most {MAX_METHODS}; split it")
    return Comparison(name=name, question=question, base=base, seeds=seeds, **names)


def check_known(name: Any, names: Collection[str], where: str) -> None:
    if not isinstance(name, str) or name not in names:
        hint = did_you_mean(str(name), names) or f"; there are {', '.join(names)}"
        raise StudyError(f"{where}: nothing is called {name!r}{hint}")


def check_overrides(values: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Check that every override is a recipe field that a study may set, and keeps runs comparable.

    recipes: of `fields_of_recipes`.
    """
    parts = {"common": values["common"]}
    parts |= {f"settings: {name}": overrides for name, overrides in values["settings"].items()}
    parts |= {f"methods: {name}": overrides for name, overrides in values["methods"].items()}
    for part, overrides in parts.items():
        check_fields(overrides, f"{path}: {part}")
        for key in overrides.keys() & SET_BY_STUDY.keys():
            raise StudyError(f"{path}: {part}: {key} cannot be set: {SET_BY_STUDY[key]}")
    of_settings = {key for overrides in values["settings"].values() for key in overrides}
    for name, overrides in values["methods"].items():
        for key in overrides:
            if key.startswith(CONTROLLED_FIELDS):
                raise StudyError(
                    f"{path}: methods: {name}: {key} would make runs that cannot be compared: all methods have the "
                    "same start, data, order, length, questions, sampling and rewards; set it in common or in settings"
                )
            if key in of_settings:
                raise StudyError(
                    f"{path}: methods: {name}: {key} is also set in settings, and one would hide the other; "
                    "set it in one place"
                )
    grounds = {setting: {**fields, **values["common"]} for setting, fields in recipes.items()}
    settings = {setting: {**grounds[setting], **overrides} for setting, overrides in values["settings"].items()}
    check_distinct(settings, f"{path}: settings", {})
    for ground in grounds.values():
        check_distinct(values["methods"], f"{path}: methods", ground)


def check_fields(values: Mapping[str, Any], where: str) -> None:
    check_keys(values, field_names(RECIPE_PARTS), where=where)
    check_values(RECIPE_PARTS, dict(values), where=where)


def check_distinct(parts: Mapping[str, Mapping[str, Any]], where: str, ground: Mapping[str, Any]) -> None:
    """Reject two names with identical fields; an explicit default value hides a duplicate."""
    seen: dict[str, str] = {}
    for name, overrides in parts.items():
        content = yaml.safe_dump({**ground, **overrides})
        if content in seen:
            raise StudyError(f"{where}: {seen[content]} and {name} are the same; remove one")
        seen[content] = name


def fields_by_place(
    values: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Comparison]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(setting, method) -> all fields of its recipes but the seed, in the order in which the runs are made."""
    methods = {INITIAL: {}, **values["methods"]}
    grounds = {
        setting: {key: value for key, value in recipe.items() if key not in SET_BY_STUDY}
        | values["common"]
        | values["settings"][setting]
        for setting, recipe in recipes.items()
    }
    return {
        (setting, method): {**grounds[setting], "evaluate_before": False, **methods[method]}
        for comparison in comparisons
        for setting in comparison.settings
        for method in (INITIAL, *comparison.methods)
    }


def run_label(setting: str, method: str) -> str:
    """The label of a run, for messages."""
    return f"setting {setting}, " + (INITIAL if method == INITIAL else f"method {method}")


def plan(
    fields: Mapping[tuple[str, str], Mapping[str, Any]],
    recipes: Mapping[tuple[str, str], Recipe],
    comparisons: Sequence[Comparison],
    values: Mapping[str, Any],
) -> list[PlannedRun]:
    """All runs, once each: for each comparison and setting the start, then seed by seed every method."""
    places = [
        place
        for one in comparisons
        for setting in one.settings
        # The start is the same whatever the method and the seed.
        for place in (
            (setting, INITIAL, 0),
            *((setting, method, seed) for seed in one.seeds for method in one.methods),
        )
    ]
    return [
        PlannedRun(
            setting,
            method,
            seed,
            {**fields[setting, method], "seed": seed},
            max_steps(recipes[setting, method]),
            values["launches"][setting],
            values["sets"][setting],
        )
        for setting, method, seed in dict.fromkeys(places)
    ]


def max_steps(recipe: Recipe) -> int | None:
    """Optimizer steps, None where a recipe counts epochs."""
    return recipe.config.max_steps if recipe.config.max_steps > 0 else None


def read_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Fields as `vgpo train` reads them."""
    try:
        return recipe_from(values, where=where)
    except RecipeError as error:
        raise StudyError(str(error)) from error


def check_comparable(recipe: Recipe, where: str) -> None:
    """Check that methods can be compared: held-out questions and training accuracy exist."""
    if recipe.run.eval_data is None:
        raise StudyError(f"{where}: eval_data is missing; a comparison needs held-out questions")
    accuracy = recipe.accuracy_reward
    if recipe.config.dynamic_sampling and recipe.config.filter_reward is None and "accuracy" not in accuracy:
        raise StudyError(
            f"{where}: dynamic sampling filters by {accuracy!r}, the first reward, and its mean over all prompts drawn"
            " is compared as training accuracy; set filter_reward to the reward that measures accuracy"
        )


def write_recipe(path: Path, values: Mapping[str, Any]) -> Path:
    write_file(path, yaml.safe_dump(dict(values), sort_keys=False).encode("utf-8"))
    return path


def differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The fields in which two recipes differ."""
    return [key for key in dict.fromkeys([*values, *others]) if values.get(key) != others.get(key)]
