"""Checks of settings: a number in its range, a known choice, no setting that would have no effect."""

from collections.abc import Iterable
from dataclasses import fields
from math import inf, isfinite
from typing import Any

# What is done with rows of a dataset that cannot be used.
ERROR, DROP = "error", "drop"
FAULTY_ROWS = (ERROR, DROP)


def check_number(name: str, value: float, *, low: float, high: float = inf, low_included: bool = False) -> None:
    """Raise a ValueError unless ``value`` is a finite number above ``low`` (or on it) and up to ``high``."""
    accepted = f"a number {'>=' if low_included else '>'} {low}" + (f" and <= {high}" if high < inf else "")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not is_number or value > high or value < low or (value == low and not low_included):
        raise ValueError(f"{name} is {value!r}, expected {accepted}.")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``, type included."""
    # By type too: 1 == True, and "False" is not a bool.
    if type(value) is not type(choices[0]) or value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}.")


def check_used(settings: Any, name: str, **needed: str | bool) -> None:
    """Raise a ValueError if field ``name`` of a dataclass is not at its default, but has no effect.

    It has an effect if any other field has its ``needed`` value.
    """
    values = vars(settings)
    default = next(field.default for field in fields(settings) if field.name == name)
    if values[name] == default or any(values[other] == value for other, value in needed.items()):
        return
    found = " and ".join(f"{other}={values[other]!r}" for other in needed)
    accepted = " or ".join(f"{other}={value!r}" for other, value in needed.items())
    raise ValueError(f"{name}={values[name]} has no effect with {found}: set {accepted} or leave {name} out.")


def reject_unused(config: Any, names: Iterable[str], *, without: str, fix: str) -> None:
    """Reject fields of a dataclass that are not at their default although they have no effect.

    Raises:
        ValueError: one is; names it.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            raise ValueError(f"{name}={value!r} has no effect without {without}. Remove it, or set {fix}.")
