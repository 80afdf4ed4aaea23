"""Inputs and outputs of a run, for all hosts."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from vgpo.data import FORMATS, Reading
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.suite_settings import greedy_protocol, suite_benchmarks, suite_sources
from vgpo.recipe.values import CHOICES, check_choices, shown
from vgpo.rewards import load_reward, reward_name
from vgpo.run.folder import MAX_ROLLOUT_BYTES
from vgpo.settings_checks import check_choice
from vgpo.text import did_you_mean


@dataclass
class RunArguments:
    """Inputs and outputs of a run. The method is in `MethodArguments`; other fields belong to the host.

    Raises:
        ValueError: An unknown reward, or an invalid value.
    """

    train_data: str = field(
        metadata={
            "help": "Training set: a parquet or JSONL file, a folder or a hub name, each with an optional @split; "
            "'toy:train' writes the toy task's set into the run folder and reads it from there."
        }
    )
    host: str = field(
        default="trl",
        metadata={"help": "The trainer: 'trl', under accelerate, or 'verl', on a Ray cluster (docs/scale_out.md)."},
    )
    verl: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Further verl settings, by dotted key. As JSON on the command line."},
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
        metadata={"help": "Resume the run in run_dir from its newest intact checkpoint; start it if there is none."},
    )
    allow_changes: bool = field(
        default=False,
        metadata={"help": "Resume although data, rewards or settings have changed; recorded in run_dir."},
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Held-out set, specified like train_data; evaluated greedily before and after the training."
        },
    )
    train_format: str | None = field(
        default=None,
        metadata={
            "help": "Format of train_data, such as 'easyr1', 'verl', 'trl', 'sharegpt' or 'mathvista'; docs/data.md "
            "lists all. Default: detected from its columns."
        },
    )
    eval_format: str | None = field(default=None, metadata={"help": "Format of eval_data, like train_format."})
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Maps expected columns to those of train_data, as in {answer: ground_truth}; on the command line "
            "in JSON."
        },
    )
    eval_columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "The same for eval_data. Default: columns."}
    )
    faulty_rows: str = field(
        default="error",
        metadata={
            "help": "What to do with rows that cannot be used: 'error', or 'drop', which removes them from "
            "train_data and eval_data after a warning that counts and names them."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Training prompts with more tokens (text and images) are dropped and reported; none is ever "
            "truncated."
        },
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate at most N questions, the first ones."})
    eval_suite: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Benchmarks to evaluate on while training: names of tasks, or the suites 'vgpo', 'vgpo-math' and "
            "'vgpo-vision'. Default: none."
        },
    )
    eval_suite_data: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Source of their data: a folder, or a source per task, as in {mathvista: FILE}; on the "
            "command line in JSON. Default: the original datasets on the hub."
        },
    )
    eval_suite_limit: int | None = field(
        default=None,
        metadata={"help": "Number of rows per benchmark: a fixed random sample. Default: all."},
    )
    eval_suite_steps: int | None = field(
        default=None,
        metadata={"help": "Evaluate every N optimizer steps and after the last. Default: only after the last."},
    )
    eval_suite_protocol: str = field(
        default="papo-greedy", metadata={"help": "Grading protocol: 'papo-greedy' or 'lenient'."}
    )
    evaluate_before: bool = field(
        default=True, metadata={"help": "Also evaluate the starting model, so that the report can show a gain."}
    )
    template: str = field(
        default="plain",
        metadata={"help": "Prompt template: 'plain', 'think_boxed', or a Jinja file with the variable 'problem'."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy"],
        metadata={
            "help": "Rewards to add up: 'accuracy', 'accuracy_math_verify', 'format', or your own as "
            "'module:function' or 'path/to/file.py:function'; reward_weights weighs them in this order."
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
        metadata={
            "help": "Number of processes for which the batch sizes are chosen; another number at start is an error."
        },
    )
    vllm_server_devices: str | None = field(
        default=None,
        metadata={
            "help": "GPUs of a vLLM server that the run starts and stops, such as '6,7'; the training processes "
            "must not have them. Default: the server is started by `vgpo serve`."
        },
    )
    max_rollout_bytes: int = field(
        default=MAX_ROLLOUT_BYTES,
        metadata={"help": "Size limit of stored rollouts and their images; beyond it, the oldest ones are deleted."},
    )
    lora_vision: bool = field(
        default=False,
        metadata={"help": "With use_peft, also add adapters to the vision tower and the projector."},
    )

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards is empty; name at least one, as in rewards: [accuracy]")
        names = self.reward_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rewards: two are called {twice[0]!r}; metrics need names that differ, rename one")
        for name, kind in (("train_format", self.train_format), ("eval_format", self.eval_format)):
            if kind is not None and kind not in FORMATS:
                raise ValueError(f"{name}: unknown format {kind!r}{did_you_mean(kind, FORMATS)}")
        for name in ("columns", "eval_columns"):
            column_names(name, getattr(self, name))
        check_choice("host", self.host, CHOICES["host"])
        if self.verl is not None and self.host != "verl":
            raise ValueError("verl has no effect without host: verl; set that, or remove it")
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
        """The names of the rewards in metrics and records."""
        return [reward_name(load_reward(source)) for source in self.rewards]

    def reading(self, field: str) -> Reading:
        """How the rows of `train_data` or `eval_data` are read."""
        if field == "train_data":
            return Reading(self.train_format, column_names("columns", self.columns), self.faulty_rows)
        columns = self.columns if self.eval_columns is None else self.eval_columns
        return Reading(self.eval_format, column_names("eval_columns", columns), self.faulty_rows)


def reading_from(format: str | None, columns: str | None, faulty_rows: str) -> Reading:
    """How a dataset is read, from command options; `columns` as JSON.

    Raises:
        RecipeError: An invalid option.
    """
    try:
        check_choices({"faulty_rows": faulty_rows, "columns": columns}, get_type_hints(RunArguments))
        return Reading(format, column_names("columns", columns), faulty_rows)
    except ValueError as error:
        raise RecipeError(f"command line: {error}") from error


def column_names(field: str, value: Any) -> dict[str, str] | None:
    """A mapping of columns, also given as JSON text.

    Raises:
        ValueError: It is not a mapping of names.
    """
    names = json.loads(value) if isinstance(value, str) else value
    if names is not None and not all(isinstance(name, str) for pair in names.items() for name in pair):
        raise ValueError(f"{field} is {shown(names)}, expected names of columns, as in {{answer: ground_truth}}")
    return names
