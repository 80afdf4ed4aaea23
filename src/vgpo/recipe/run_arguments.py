"""What a run reads and writes, whatever host trains it."""

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
    """What a run reads and writes. The method is `MethodArguments`; the rest is the host's.

    Raises:
        ValueError: An unknown reward, or a value that no run can have.
    """

    train_data: str = field(
        metadata={
            "help": "Training set: a parquet or JSONL file, a folder, a hub name, each with an optional @split; "
            "'toy:train' writes the embedded task's set into the run folder and reads it from there."
        }
    )
    host: str = field(
        default="trl",
        metadata={"help": "The trainer: 'trl', under accelerate, or 'verl', on a Ray cluster (docs/scale_out.md)."},
    )
    verl: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Settings of verl itself, by dotted key, that no other field makes. On the command line in JSON."
        },
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
        metadata={
            "help": "Format of train_data, such as 'easyr1', 'verl', 'trl', 'sharegpt' or 'mathvista'; docs/data.md "
            "lists all. Default: detected from its columns."
        },
    )
    eval_format: str | None = field(default=None, metadata={"help": "Format of eval_data, as train_format."})
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
            "help": "Benchmarks to evaluate on while training: names of tasks, or the suites 'vgpo', 'vgpo-math' and "
            "'vgpo-vision'. Default: none."
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
        check_choices({"faulty_rows": faulty_rows, "columns": columns}, get_type_hints(RunArguments))
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
