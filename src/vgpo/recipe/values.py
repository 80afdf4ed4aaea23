"""Validate values of recipe fields: ranges of numbers, lengths of texts, depth of nesting."""

import enum
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, get_args

from vgpo.settings_checks import FAULTY_ROWS
from vgpo.text import did_you_mean

MAX_TEXT = 4_096  # characters; paths are not longer
MAX_NAME = 255  # bytes per path component, on every common file system
FAR = 1e6
MAX_DEPTH = 16  # of nested lists and dicts
MAX_ITEMS = 10_000  # YAML aliases can expand to any number
MAX_WEIGHT = 1e6  # with rewards of at most 1e9, sums and their squares fit into float32


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `open_low` and `open_high` exclude an end."""

    low: float = 0
    high: float = 1e12
    open_low: bool = False
    open_high: bool = False
    reason: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def expected(self, value: float) -> str:
        """Description of the expected range; an extreme bound is only named if `value` violates it."""
        ends = [f"a number above {self.low:g}" if self.open_low else f"at least {self.low:g}"]
        if self.high < FAR or not value <= self.high:
            ends.append(f"below {self.high:g}" if self.open_high else f"at most {self.high:g}")
        return " and ".join(ends) + (f"; {self.reason}" if self.reason else "")


ANY = Range()
COUNT = Range(1, 1e9)
POSITIVE = Range(0, 1e6, open_low=True)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)
SEED = Range(0, 2**32 - 1)
PORT = Range(1, 65_535)
STEPS = Range(0, 1e9, open_low=True)

# Fields with a range other than `ANY`.
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "steps_per_generation", "generation_batch_size", "num_iterations", "num_processes", "num_generations",
            "num_generations_eval", "max_completion_length", "max_prompt_length", "eval_limit", "min_pixels",
            "max_pixels", "lora_r", "save_total_limit", "eval_accumulation_steps", "torch_empty_cache_steps",
            "ref_model_sync_steps", "vllm_tensor_parallel_size", "vllm_max_model_length", "ddp_bucket_cap_mb",
            "ddp_timeout", "dataloader_prefetch_factor", "max_sampling_rounds", "max_skipped_steps", "alarm_lines",
            "log_rollouts_groups", "num_completions_to_print", "max_tool_calling_iterations", "eval_suite_limit",
            "eval_suite_steps",
        ),
        COUNT,
    ),
    **dict.fromkeys(("temperature", "repetition_penalty", "num_train_epochs", "vllm_server_timeout"), POSITIVE),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), POSITIVE),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), PORT),
    **dict.fromkeys(("logging_steps", "eval_steps"), STEPS),
    **dict.fromkeys(("min_p", "ref_model_mixup_alpha", "top_entropy_quantile", "label_smoothing_factor"), SHARE),
    **dict.fromkeys(("weight_decay", "accuracy_low", "accuracy_high", "tail_ratio", "gate_ratio"), SHARE),
    "max_rollout_bytes": Range(1, 1e15),
    "max_steps": Range(-1, 1e9),
    "local_rank": Range(-1, 1e6),
    "top_k": Range(-1, 1e9),
    "top_p": Range(0, 1, open_low=True, reason="1 keeps all"),
    "vllm_gpu_memory_utilization": Range(0, 1, open_low=True),
    "dataloader_num_workers": Range(0, 1024),
    "save_steps": Range(0, 1e9, open_low=True, reason="otherwise no checkpoint is saved before the end"),
    "learning_rate": Range(0, 1, open_low=True, reason="with 0 nothing is learned"),
    "adam_beta1": Range(0, 1, open_high=True, reason="with 1 nothing is learned"),
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": Range(0, 1, open_low=True),
    "max_grad_norm": Range(0, 1e6, reason="0 does not clip"),
    "epsilon": Range(0, 1e6, open_low=True, reason="with 0 every update but the first of a generation is clipped"),
    "epsilon_high": POSITIVE,
    "delta": POSITIVE,
    "beta": Range(0, 1e3),
    "lora_alpha": Range(0, 1e6, open_low=True, reason="with 0 the adapters have no effect"),
    "lora_dropout": Range(0, 1, open_high=True, reason="with 1 nothing is learned"),
    "entropy_coef": Range(-1e3, 1e3),
    "entropy_coef_min": Range(-1e3, 1e3),
    "entropy_coef_max": Range(-1e3, 1e3),
    "entropy_target": Range(-1e3, 1e3),
}  # fmt: skip

# Names that a library would only reject after loading the model, or at the first step.
CHOICES: dict[str, tuple[str, ...]] = {
    "host": ("trl", "verl"),
    "faulty_rows": FAULTY_ROWS,
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "vllm_dtype": ("auto", "float32", "bfloat16", "float16"),
    "bnb_4bit_quant_type": ("fp4", "nf4"),
    "lora_task_type": ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"),
}
# Mappings that may also be given as the name of a JSON file or folder.
FILES = ("accelerator_config", "deepspeed", "fsdp_config")
FOLDERS = ("eval_suite_data",)
PATHS = ("train_data", "eval_data", "run_dir", "template", "model_name_or_path", "rewards")

ONE_LINE = (*PATHS, "run_name", "project", "hub_model_id", "filter_reward")
SCIENTIFIC = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")

_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value as Python writes it, of bounded length."""
    return _short.repr(value)


def check_texts(values: Mapping[str, Any]) -> None:
    """Check that texts, also in lists and dicts, have a valid length and no control characters, and names fit.

    Raises:
        ValueError: One does not; names its field.
    """
    for name, value in values.items():
        for place, item in leaves(name, value):
            if isinstance(item, str):
                check_text(place, item, is_path=name in PATHS)


def check_text(place: str, text: str, *, is_path: bool) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"{place} has {len(text):,} characters, expected at most {MAX_TEXT:,}")
    allowed = "\t" if place in ONE_LINE else "\t\n\r"
    if control := next((character for character in text if ord(character) < 32 and character not in allowed), None):
        raise ValueError(f"{place} is {shown(text)}, expected no control character such as {control!r}")
    parts = text.rpartition(":")[0].split("/") if place.startswith("rewards") else text.split("/")
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    if is_path and longest > MAX_NAME:
        raise ValueError(f"{place} has a name of {longest} bytes, expected at most {MAX_NAME}, as file systems do")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check that all numbers are finite and in the range of their field, before a library divides by them.

    Raises:
        ValueError: A number is invalid; names its field and the range.
    """
    for name, value in values.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            check_number(name, value)
        for place, item in leaves(name, value):
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{place} is {item:g}, expected a finite number")
    if values.get("max_steps") == 0:
        raise ValueError("max_steps is 0, expected at least 1, or -1 to train num_train_epochs")
    check_warmup(values)
    check_weights(values.get("reward_weights"))


def check_number(name: str, value: float) -> None:
    allowed = RANGES.get(name, ANY)
    if value not in allowed:  # NaN is in no range
        raise ValueError(f"{name} is {number(value)}, expected {allowed.expected(value)}")


def number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)


def check_warmup(values: Mapping[str, Any]) -> None:
    """Check that warmup is not longer than training, which would never reach the learning rate."""
    warmup, steps = values.get("warmup_steps") or 0, values.get("max_steps") or -1
    if warmup > steps > 0:
        raise ValueError(
            f"warmup_steps is {warmup:g}, expected at most max_steps={steps}: learning_rate would never be reached"
        )


def check_weights(weights: Sequence[Any] | None) -> None:
    """Check that reward weights are finite numbers that neither overflow a sum nor disable all rewards."""
    for weight in weights or ():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"reward_weights has {shown(weight)} in its list, expected numbers")
        if not abs(weight) <= MAX_WEIGHT:
            raise ValueError(f"reward_weights has {number(weight)}, expected numbers from -1e6 to 1e6")
    if weights and not any(weights):
        raise ValueError(f"reward_weights is {weights}: no reward counts, and nothing would be learned")


def check_choices(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check texts of fields that take one of a fixed set of names, or a mapping.

    Raises:
        ValueError: A text is invalid; names its field and the expected values.
    """
    for name, value in values.items():
        if not isinstance(value, str) or name not in hints:
            continue
        names = list(CHOICES.get(name, ())) or [member.value for kind in enums_of(hints[name]) for member in kind]
        if names and value not in names:
            raise ValueError(f"{name} is {shown(value)}{did_you_mean(value, names)}, expected one of {names}")
        if "dict" in str(hints[name]) and name not in FOLDERS and not is_mapping(value):
            check_file(name, value)
    padding = values.get("pad_to_multiple_of")
    if isinstance(padding, str) and padding != "auto" and not padding.isdecimal():
        raise ValueError(f"pad_to_multiple_of is {shown(padding)}, expected 'auto' or a whole number")


def is_mapping(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def check_file(name: str, path: str) -> None:
    if name not in FILES:
        raise ValueError(f"{name} is {shown(path)}, expected a mapping (on the command line in JSON)")
    if not Path(path).is_file():
        raise ValueError(f"{name} is {shown(path)}, expected a mapping or the path of a JSON file")


def enums_of(hint: Any) -> Iterator[type[enum.Enum]]:
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            yield kind


def check_nesting(place: str, value: Any) -> None:
    """Check that nested lists and dicts are small; a self-referencing one never ends.

    Raises:
        ValueError: They are too deep or too large; names the field.
    """
    waiting, num_items = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        num_items += 1
        if depth > MAX_DEPTH or num_items > MAX_ITEMS:
            raise ValueError(
                f"{place} has lists or mappings nested more than {MAX_DEPTH} deep, or more than {MAX_ITEMS} "
                "values; expected a few at most"
            )
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting.extend((one, depth + 1) for one in inner)


def with_numbers(value: Any) -> Any:
    """A mapping with numbers that YAML 1.1 reads as texts, such as 1e-7, converted to numbers."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested lists and dicts, each with its path, such as `lr_scheduler_kwargs.min_lr`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(f"{place}.{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(place, item)
    else:
        yield place, value
