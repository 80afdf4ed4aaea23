"""All settings of the runs of a report, those first that a reader asks for."""

import shlex
from collections.abc import Container, Mapping, Sequence
from typing import Any

from vgpo.pages.texts import truncate

MAX_NAME_CHARACTERS = 200
MAX_VALUE_CHARACTERS = 400
# In this order, before all others.
FIRST = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "max_steps",
    "num_train_epochs", "model_name_or_path",
)  # fmt: skip
COMMAND = "command"
# Settings that differ between any two runs, or follow from others, and explain nothing.
UNEXPLAINING = ("run_dir", "output_dir", "run_name", "logging_dir", "report_to", "accuracy_reward")
ABSENT = "—"


COMMAND_LINE = "command line"
DIFFERS = "differs"
NOT_DEFAULT = "not the default"


def settings_table(
    configs: Sequence[Mapping[str, Any]], commands: Sequence[Sequence[str]], defaults: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Collect the settings of the runs.

    Args:
        configs: Settings of each run.
        commands: Command line of each run; empty if it is not known.
        defaults: Of one run, the defaults of the settings that differ from them; empty if they are not known.

    Returns:
        list of dicts: `name`; `values`, a text per run; `first`, whether it belongs at the top; `marked`, why it is
        marked, empty if it is not: the runs differ in it, or, of one run, the command line set it, or it differs from
        its default; `default`, a text, None where it is unknown or the value. Those at the top first, then those
        marked.
    """
    flat = [flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    given = options_of(commands[0]) if len(configs) == 1 else set()
    known = flatten(defaults or {}) if len(configs) == 1 else {}
    rows = []
    for name in names:
        values = [config.get(name, ABSENT) for config in flat]
        rows.append(row(name, values, mark=mark_of(name, values, given, known), default=known.get(name)))
    if any(commands):
        lines = [shlex.join(words) or ABSENT for words in commands]
        rows.append(row(COMMAND, lines, mark=DIFFERS if len(set(lines)) > 1 else ""))
    return sorted(rows, key=rank)


def mark_of(name: str, values: Sequence[str], given: Container[str], defaults: Container[str]) -> str:
    """Why a setting is marked; empty if it is not."""
    if name.split(".")[-1] in UNEXPLAINING:
        return ""
    if len(set(values)) > 1:
        return DIFFERS
    return COMMAND_LINE if name in given else NOT_DEFAULT if name in defaults else ""


def row(name: str, values: Sequence[str], *, mark: str, default: str | None = None) -> dict[str, Any]:
    return {
        "name": truncate(name, MAX_NAME_CHARACTERS),
        "values": [truncate(value, MAX_VALUE_CHARACTERS) for value in values],
        "first": name in (*FIRST, COMMAND),
        "marked": mark,
        "default": None if default is None else truncate(default, MAX_VALUE_CHARACTERS),
    }


def rank(setting: Mapping[str, Any]) -> tuple[int, int]:
    """Where a setting is in the table: the first ones in their order, then those marked."""
    order = (*FIRST, COMMAND)
    return (0, order.index(setting["name"])) if setting["first"] else (1, 0) if setting["marked"] else (2, 0)


def options_of(command: Sequence[str]) -> set[str]:
    """Names of the settings that a command line sets."""
    names = (word[2:].partition("=")[0] for word in command if word.startswith("--"))
    return {name.replace("-", "_") for name in names}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `{"a.b": "text"}` for nested settings, each value as in a recipe."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = setting_text(value)
    return flat


def setting_text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
