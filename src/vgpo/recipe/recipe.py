"""Recipes: YAML files that only pick values, checked key by key before anything heavy is loaded."""

import dataclasses
import functools
import json
import logging
import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from trl import ModelConfig, TrlParser

from vgpo.data import FORMATS, Reading, template_text
from vgpo.evaluation.benchmarks import SUITES
from vgpo.recipe.suite import greedy_protocol, suite_benchmarks, suite_sources
from vgpo.recipe.values import check_choices, check_nesting, check_numbers, check_texts, shown, with_numbers
from vgpo.recipe.yaml_files import YamlFileError, read_yaml
from vgpo.rewards import REWARDS, load_reward, reward_name
from vgpo.run.folder import MAX_ROLLOUT_BYTES
from vgpo.text import did_you_mean
from vgpo.training.accuracy import accuracy_reward_name
from vgpo.trl import VGPOConfig

logger = logging.getLogger(__name__)


TOY_MODEL = "toy"
ON_CPU = ("--use_cpu", "true")  # a recipe written for GPUs can be looked at on any machine

# Known to the libraries below, but without effect or without safety here: refused with the way out.
REFUSED_KEYS = {
    "output_dir": "checkpoints go into the run folder; set run_dir instead",
    "model_init_kwargs": "set dtype, attn_implementation, model_revision or trust_remote_code instead",
    "resume_from_checkpoint": "set resume: true, which takes the newest whole checkpoint of run_dir",
    "eval_strategy": "evaluation is greedy and runs before and after the training; set eval_data instead",
}


# The key under which a recipe names the one whose fields it changes.
EXTENDS = "extends"
# Fields of version 0.1 that have another name now.
RENAMED_FIELDS = {"alarm_groups_alike": "alarm_zero_reward_std", "alarm_answers_cut": "alarm_truncation"}

SCALARS = bool | int | float | str
MAX_MESSAGE = 500  # characters of what a library says about a value
NO_GPU_THERE = "doesn't support bf16"  # in the message of transformers
COMMIT = re.compile("[0-9a-f]{40}")
DOWNLOAD = "download it (`hf download {name} --revision COMMIT --local-dir FOLDER`) and name the folder"
NO_GPU = "bf16 needs a GPU (or use_cpu): set bf16: false"


class RecipeError(ValueError):
    """A recipe or a command line that cannot be run; the message names file, key and fix."""


@dataclass
class RunArguments:
    """What a run reads and writes; the method and the optimiser are `VGPOConfig`, the model is `ModelConfig`.

    Raises:
        ValueError: An unknown reward, or a value that no run can have.
    """

    train_data: str = field(
        metadata={
            "help": "Training set: a parquet or JSONL file, a folder, a hub name, each with an optional @split; "
            "'toy:train' writes the embedded task's set into the run folder and reads it from there."
        }
    )
    run_dir: str = field(
        default="",
        metadata={
            "help": "Folder of the run: its settings, metrics, rollouts, checkpoints and report. "
            "Default: runs/ and the name of the recipe."
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Go on with the run in run_dir from its newest whole checkpoint; begin it where there is none."
        },
    )
    allow_changes: bool = field(
        default=False,
        metadata={"help": "Go on although data, rewards or settings are not those of the run; recorded in run_dir."},
    )
    eval_data: str | None = field(
        default=None,
        metadata={"help": "Held-out set, written as train_data; evaluated greedily before and after the training."},
    )
    train_format: str | None = field(
        default=None,
        metadata={"help": f"How train_data is written, of {list(FORMATS)}. Default: recognised by its columns."},
    )
    eval_format: str | None = field(default=None, metadata={"help": "How eval_data is written, as train_format."})
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Columns of train_data that are read as others, as in {answer: ground_truth}; on the command line "
            "in JSON."
        },
    )
    eval_columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "The same for eval_data. Default: columns."}
    )
    faulty_rows: str = field(
        default="error",
        metadata={
            "help": "What becomes of rows that cannot be used: 'error', or 'drop', which leaves them out of "
            "train_data and eval_data after a warning that counts and names them."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Training prompts of more tokens, text and images, are left out and reported; none is ever cut."
        },
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate on the first so many questions only."})
    eval_suite: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Benchmarks to evaluate on while training: names of tasks or suites, of {list(SUITES)}. Default: "
            "none."
        },
    )
    eval_suite_data: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Where their data are: a folder, or a source for each task, as in {mathvista: FILE}; on the "
            "command line in JSON. Default: the original sets on the hub."
        },
    )
    eval_suite_limit: int | None = field(
        default=None,
        metadata={"help": "Rows of each benchmark that are asked: a random sample, always the same. Default: all."},
    )
    eval_suite_steps: int | None = field(
        default=None,
        metadata={"help": "Evaluate after every so many optimizer steps and after the last. Default: the last alone."},
    )
    eval_suite_protocol: str = field(
        default="papo-greedy", metadata={"help": "How the answers are graded: 'papo-greedy' or 'lenient'."}
    )
    evaluate_before: bool = field(
        default=True, metadata={"help": "Evaluate the start model too, so that the report can state a gain."}
    )
    template: str = field(
        default="plain",
        metadata={"help": "Prompt template: 'plain', 'think_boxed', or a Jinja file with the variable 'problem'."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy"],
        metadata={
            "help": f"Rewards to add up: {sorted(REWARDS)}, or your own as 'module:function' or "
            "'path/to/file.py:function'; reward_weights weighs them in this order."
        },
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Smaller images are enlarged to this many pixels. Default: the processor's."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Larger images are reduced to this many pixels. Default: the processor's."}
    )
    num_processes: int | None = field(
        default=None,
        metadata={"help": "Processes that the batch sizes are written for; another number at start is an error."},
    )
    vllm_server_devices: str | None = field(
        default=None,
        metadata={
            "help": "GPUs of a vLLM server that the run starts and stops, as '6,7'; the processes of the training "
            "must not have them. Default: the server is started by `vgpo serve`."
        },
    )
    max_rollout_bytes: int = field(
        default=MAX_ROLLOUT_BYTES,
        metadata={"help": "Limit of the written rollouts with their images; beyond it the oldest ones go."},
    )
    lora_vision: bool = field(
        default=False,
        metadata={"help": "Adapters of use_peft in the vision tower and the projector too, not the decoder alone."},
    )

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards is empty; name one at least, as in rewards: [accuracy]")
        names = self.reward_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rewards: two are called {twice[0]!r}; metrics need names that differ, rename one")
        for name, kind in (("train_format", self.train_format), ("eval_format", self.eval_format)):
            if kind is not None and kind not in FORMATS:
                raise ValueError(f"{name}: unknown format {kind!r}{did_you_mean(kind, FORMATS)}")
        for name in ("columns", "eval_columns"):
            column_names(name, getattr(self, name))
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes has no effect without resume; set resume: true or remove it")
        self._check_suite()

    def _check_suite(self) -> None:
        if not self.eval_suite:
            for one in dataclasses.fields(self):
                if one.name.startswith("eval_suite_") and getattr(self, one.name) != one.default:
                    raise ValueError(
                        f"{one.name} has no effect without eval_suite; name benchmarks there, or remove it"
                    )
            return
        readers: dict[str, Callable[[Any], object]] = {
            "eval_suite": suite_benchmarks,
            "eval_suite_data": suite_sources,
            "eval_suite_protocol": greedy_protocol,
        }
        for name, read in readers.items():
            try:
                read(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    @property
    def reward_names(self) -> list[str]:
        """The names of `rewards` in metrics and records."""
        return [reward_name(load_reward(source)) for source in self.rewards]

    def reading(self, field: str) -> Reading:
        """How the rows of `train_data` or `eval_data` are read."""
        if field == "train_data":
            return Reading(self.train_format, column_names("columns", self.columns), self.faulty_rows)
        columns = self.columns if self.eval_columns is None else self.eval_columns
        return Reading(self.eval_format, column_names("eval_columns", columns), self.faulty_rows)


def reading_from(format: str | None, columns: str | None, faulty_rows: str) -> Reading:
    """How a set is read, by options of a command; `columns` in JSON.

    Raises:
        RecipeError: An option that no set can be read by.
    """
    try:
        check_choices({"faulty_rows": faulty_rows, "columns": columns}, field_types())
        return Reading(format, column_names("columns", columns), faulty_rows)
    except ValueError as error:
        raise RecipeError(f"command line: {error}") from error


def column_names(field: str, value: Any) -> dict[str, str] | None:
    """A mapping of columns, also as JSON text.

    Raises:
        ValueError: It maps anything but names.
    """
    names = json.loads(value) if isinstance(value, str) else value
    if names is not None and not all(isinstance(name, str) for pair in names.items() for name in pair):
        raise ValueError(f"{field} is {shown(names)}, expected names of columns, as in {{answer: ground_truth}}")
    return names


RECIPE_PARTS = (RunArguments, VGPOConfig, ModelConfig)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: everything `vgpo.recipe.train.train` needs."""

    run: RunArguments
    config: VGPOConfig
    model: ModelConfig

    @property
    def wants_thought(self) -> bool:
        """Whether responses shall begin with a thought between tags."""
        return "format" in self.run.rewards or "<think>" in template_text(self.run.template)

    @property
    def accuracy_reward(self) -> str:
        """The reward that measures accuracy.

        Raises:
            ValueError: `filter_reward` is none of the rewards.
        """
        return accuracy_reward_name(self.run.reward_names, self.config.filter_reward)


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and the command line that overrides it.

    A recipe may change another one: `extends: NAME`, then the fields in which it differs.

    Args:
        source: Path of a YAML file, or the name of a recipe that comes with the package.
        overrides: Command-line words such as `["--learning_rate", "1e-6"]`.

    Raises:
        RecipeError: Missing file, no mapping, unknown or refused key, or a value that does not fit.
    """
    path = find_recipe(source)
    return recipe_from(read_fields(path), overrides, where=str(path), name=path.stem)


def recipe_from(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str, name: str = "run") -> Recipe:
    """A recipe of fields and values, and a command line that overrides them.

    Args:
        values: Fields of the recipe.
        overrides: As of `load_recipe`.
        where: Where the values come from, for messages.
        name: Of the folder below `runs` that is the default of `run_dir`.

    Raises:
        RecipeError: An unknown or refused field, or a value that does not fit.
    """
    values = with_current_names(values)
    overrides = [renamed_option(word) for word in overrides]
    known = field_names()
    check_keys(values, known, where=where)
    check_keys(option_names(overrides, known), known, where="command line")
    try:
        run, config, model, rest = parse(values, overrides, where=where)
    except PackageNotFoundError as error:  # transformers looks for this one while it reads the field
        raise RecipeError(f"{where}: deepspeed is not installed: pip install 'trl[deepspeed]'") from error
    except RecipeError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise RecipeError(f"{where}: {NO_GPU if NO_GPU_THERE in str(error) else one_line(error)}") from error
    if rest:
        raise RecipeError(f"command line: unexpected {shown(rest[0])}; a value follows its --field")
    if model.model_name_or_path is None:
        raise RecipeError(f"{where}: model_name_or_path is missing; name a checkpoint, or 'toy' for the embedded one")
    check_num_weights(run.rewards, config.reward_weights, where=where)
    check_adapters(run, config, model, where=where)
    check_reference(config, model, where=where)
    check_server(run, config, where=where)
    check_remote_code(config, model, where=where)
    # Absolute, so that no later change of the working directory moves files.
    run.run_dir = str(Path(run.run_dir or Path("runs") / name).expanduser().absolute())
    config.output_dir = str(Path(run.run_dir) / "checkpoints")
    recipe = Recipe(run, config, model)
    check_accuracy_reward(recipe, where=where)
    return recipe


def parse(
    values: Mapping[str, Any], overrides: Sequence[str], *, where: str
) -> tuple[RunArguments, VGPOConfig, ModelConfig, list[str]]:
    """The three parts of a recipe, and the words of the command line that belong to no field.

    Raises:
        ValueError, RecipeError: A value that makes no sense.
    """
    parser = RecipeParser(RECIPE_PARTS, allow_abbrev=False, prog="vgpo train")
    check_values(values, where=where)
    mappings = {name: with_numbers(value) for name, value in values.items() if isinstance(value, dict)}
    parser.set_values({**values, **mappings})
    raw = vars(parser.parse_known_args(overrides)[0])
    check_texts(raw)
    check_numbers(raw)
    check_choices(raw, field_types())
    *parts, rest = parser.parse_args_into_dataclasses(
        args=overrides, return_remaining_strings=True, look_for_args_file=False
    )
    for part in parts:  # what was a text in JSON is a mapping now
        check_numbers({name: value for name, value in vars(part).items() if isinstance(value, dict)})
    return *parts, rest


class RecipeParser(TrlParser):
    """TRL's parser, with a value that does not fit as an exception in place of an exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Recipe values as defaults; scalars as words, for argparse checks the type of words only."""
        lists = {action.dest for action in self._actions if action.nargs == "+"}
        words = {key: str(value) if isinstance(value, SCALARS) else value for key, value in values.items()}
        listed = {key: [value] for key, value in words.items() if key in lists and isinstance(value, str)}
        self.set_defaults_with_config(**words | listed)


def one_line(error: Exception) -> str:
    """What a library says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


@functools.cache
def field_types() -> dict[str, Any]:
    """The type of each field that a recipe may set."""
    return {name: hint for kind in RECIPE_PARTS for name, hint in get_type_hints(kind).items()}


def field_names() -> list[str]:
    """All fields that a recipe may set."""
    return [f.name for kind in RECIPE_PARTS for f in dataclasses.fields(kind) if f.init]


def find_recipe(source: str | Path) -> Path:
    """The path of a recipe: an existing file, or the name of one that comes with the package."""
    if os.path.exists(source):  # noqa: PTH110  # Path.exists raises for a name that no file system takes
        return Path(source)
    shipped = {path.stem: path for path in recipe_folder().glob("*.yaml")}
    name = Path(source).stem
    if name in shipped and Path(source).parent in (Path(), Path("recipes")):
        return shipped[name]
    hint = did_you_mean(name, shipped) or f"; the package has {', '.join(sorted(shipped))}"
    raise RecipeError(f"{source}: no such recipe file{hint}")


def recipe_folder() -> Path:
    """Inside an installed package; in a checkout, beside `src`."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        RecipeError: It cannot be read; see `read_yaml`.
    """
    try:
        return read_yaml(path)
    except YamlFileError as error:
        raise RecipeError(str(error)) from error


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a recipe file, over those of the recipe that it extends, if it names one.

    Raises:
        RecipeError: A file cannot be read, the extended recipe is missing or extends another one itself, or it has an
            unknown field.
    """
    values = read_mapping(path)
    if EXTENDS not in values:
        return values
    name = values.pop(EXTENDS)
    if not isinstance(name, str):
        raise RecipeError(f"{path}: {EXTENDS} is {shown(name)}, expected the path or the name of a recipe")
    try:
        beside = path.parent / name
        extended = find_recipe(beside if os.path.exists(beside) else name)  # noqa: PTH110  # as in find_recipe
    except RecipeError as error:
        raise RecipeError(f"{path}: {EXTENDS}: {error}") from error
    base = read_mapping(extended)
    if EXTENDS in base:
        raise RecipeError(f"{path}: {EXTENDS} {name}, which extends {base[EXTENDS]!r}; extend that one")
    base = with_current_names(base)
    check_keys(base, field_names(), where=str(extended))
    return {**base, **with_current_names(values)}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under their current names; one of version 0.1 is taken for one release, with a warning.

    Raises:
        RecipeError: A field is there under both names.
    """
    for old, new in RENAMED_FIELDS.items():
        if old in values and new in values:
            raise RecipeError(f"{old} and {new} are the same field; remove {old}")
        if old in values:
            logger.warning("%s is now called %s; the old name goes with the next release.", old, new)
    return {RENAMED_FIELDS.get(name, name): value for name, value in values.items()}


def check_keys(keys: Iterable[str], known: Sequence[str], *, where: str) -> None:
    """Refuse keys that nobody reads, and keys that would not do what they say."""
    for key in keys:
        if key in REFUSED_KEYS:
            raise RecipeError(f"{where}: {key} cannot be set: {REFUSED_KEYS[key]}")
        if key not in known:
            raise RecipeError(f"{where}: unknown field {key!r}{did_you_mean(str(key), known)}")


def check_values(values: Mapping[str, Any], *, where: str) -> None:
    """Refuse empty values and lists where a field takes none; argparse checks words only."""
    hints = field_types()
    for key, value in values.items():
        check_nesting(key, value)
        taken = {get_origin(hint) or hint for hint in (hints[key], *get_args(hints[key]))}
        if value is None and type(None) not in taken:
            raise RecipeError(f"{where}: {key} is empty; give it a value or remove the line")
        if isinstance(value, bool) and str in taken and bool not in taken:
            raise RecipeError(
                f"{where}: {key} is {value}, which is how YAML reads a bare on, off, yes or no; put it in quotes"
            )
        if isinstance(value, list) and list[str] in (hints[key], *get_args(hints[key])):
            other = [item for item in value if not isinstance(item, str)]
            if other:
                raise RecipeError(
                    f"{where}: {key} has {shown(other[0])} in its list, expected names; put it in quotes"
                )
        if not isinstance(value, SCALARS | None) and type(value) not in taken:
            raise RecipeError(f"{where}: {key} is a {type(value).__name__} ({shown(value)}), expected a single value")


def check_num_weights(rewards: Sequence[str], weights: Sequence[float] | None, *, where: str) -> None:
    """Whether there is one weight for each reward, or none at all."""
    if weights is not None and len(weights) != len(rewards):
        raise RecipeError(
            f"{where}: reward_weights has {len(weights)} values ({weights}) for {len(rewards)} rewards "
            f"({rewards}); give one for each, in the same order"
        )


def check_accuracy_reward(recipe: Recipe, *, where: str) -> None:
    """Whether there is a reward that measures accuracy."""
    try:
        _ = recipe.accuracy_reward
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def check_adapters(run: RunArguments, config: VGPOConfig, model: ModelConfig, *, where: str) -> None:
    """Whether what is said about LoRA fits together."""
    if run.lora_vision and not model.use_peft:
        raise RecipeError(f"{where}: lora_vision has no effect without use_peft; set use_peft: true or remove it")
    if config.freeze and model.use_peft:
        raise RecipeError(
            f"{where}: freeze ({config.freeze}) has no effect with use_peft, which trains adapters alone; remove it, "
            "and set lora_vision for adapters in the vision tower and the projector"
        )


def check_reference(config: VGPOConfig, model: ModelConfig, *, where: str) -> None:
    """Whether the reference model, which the parent loads from the hub again, is what the policy starts from.

    Raises:
        RecipeError: It would be of another revision.
    """
    name, revision = str(model.model_name_or_path), model.model_revision
    if config.beta and not model.use_peft and revision not in (None, "main") and not Path(name).is_dir():
        raise RecipeError(
            f"{where}: beta {config.beta:g} would load the newest {name} as the reference model, not model_revision "
            f"{revision}; {DOWNLOAD.format(name=name)}, or set beta: 0"
        )


def check_server(run: RunArguments, config: VGPOConfig, *, where: str) -> None:
    """Whether the devices of a vLLM server are those of one that is asked for."""
    if run.vllm_server_devices is not None and not (config.use_vllm and config.vllm_mode == "server"):
        raise RecipeError(
            f"{where}: vllm_server_devices has no effect without use_vllm: true and vllm_mode: server; set them, or "
            "remove it"
        )


def check_remote_code(config: VGPOConfig, model: ModelConfig, *, where: str) -> None:
    """Whether code that comes with a checkpoint, where it may run, is that of one commit; a warning says which.

    Raises:
        RecipeError: The checkpoint is on the hub, where a branch or a tag can get other code at any time.
    """
    name, revision = str(model.model_name_or_path), model.model_revision
    if not config.trust_remote_code or name == TOY_MODEL:
        return
    if Path(name).is_dir():
        logger.warning("trust_remote_code: Python code in the folder %s will run.", Path(name).resolve())
        return
    if not COMMIT.fullmatch(revision or ""):
        raise RecipeError(
            f"{where}: trust_remote_code with model_revision {revision!r} would run whatever code {name} has when the "
            "run starts. Read the code at one commit and set model_revision to its 40 characters (the page of the "
            f"repository lists them under 'History'), or {DOWNLOAD.format(name=name)}"
        )
    logger.warning("trust_remote_code: Python code of %s at commit %s will run.", name, revision)


def renamed_option(word: str) -> str:
    """A word of the command line, with the current name where it is an option of version 0.1."""
    option, equals, value = word.removeprefix("--").partition("=")
    name = option.replace("-", "_")
    if not word.startswith("--") or name not in RENAMED_FIELDS:
        return word
    return f"--{next(iter(with_current_names({name: None})))}{equals}{value}"


def option_names(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Field names in a command line: `--field`, `--field=value`, and `--no_field` for a switch."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return [name[3:] if name.startswith("no_") and name[3:] in known else name for name in names]
