"""Parse recipe fields and command-line words into dataclasses; errors name the field."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import blame, key_faults, option_names, renamed_option, with_current_names
from vgpo.recipe.values import check_choices, check_nesting, check_numbers, check_texts, shown, with_numbers

SCALARS = bool | int | float | str
MAX_MESSAGE = 500  # characters of a library's error message
NO_GPU_THERE = "doesn't support bf16"  # in the message of transformers
NO_GPU = "bf16 needs a GPU (or use_cpu): set bf16: false"


Kinds = tuple[type, ...]


def parse_fields(kinds: Kinds, values: Mapping[str, Any], overrides: Sequence[str], *, where: str) -> list[Any]:
    """Parse a recipe into one instance of each dataclass in `kinds`.

    Args:
        kinds: The dataclasses of the fields; field names are unique.
        values: Fields of the recipe.
        overrides: Words of the command line, which override `values`.
        where: Where the values come from, for messages.

    Raises:
        RecipeError: An unknown or rejected field, or an invalid value.
    """
    values = with_current_names(values)
    overrides = [renamed_option(word) for word in overrides]
    known = field_names(kinds)
    names = option_names(overrides, known)
    faults = [*key_faults(values, known, where=where), *key_faults(names, known, where="command line")]
    if faults:
        raise RecipeError("\n".join(faults))
    with blame(where, values, names):
        *parts, rest = parse_readably(kinds, values, overrides, where=where)
    if rest:
        raise RecipeError(f"command line: unexpected {shown(rest[0])}; a value follows its --field")
    return parts


def parse_readably(kinds: Kinds, values: Mapping[str, Any], overrides: Sequence[str], *, where: str) -> list[Any]:
    """As `parse`, with every error as one of the recipe."""
    try:
        return parse(kinds, values, overrides, where=where)
    except PackageNotFoundError as error:  # transformers looks for this package while parsing the field
        raise RecipeError(f"{where}: deepspeed is not installed: pip install 'trl[deepspeed]'") from error
    except RecipeError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise RecipeError(f"{where}: {NO_GPU if NO_GPU_THERE in str(error) else one_line(error)}") from error


def parse(kinds: Kinds, values: Mapping[str, Any], overrides: Sequence[str], *, where: str) -> list[Any]:
    """As `parse_fields`, followed by the command-line words that belong to no field.

    Raises:
        ValueError, RecipeError: An invalid value.
    """
    parser = RecipeParser(kinds, allow_abbrev=False, prog="vgpo train")
    check_values(kinds, values, where=where)
    mappings = {name: with_numbers(value) for name, value in values.items() if isinstance(value, dict)}
    parser.set_values({**values, **mappings})
    raw = vars(parser.parse_known_args(overrides)[0])
    check_texts(raw)
    check_numbers(raw)
    check_choices(raw, field_types(kinds))
    *parts, rest = parser.parse_args_into_dataclasses(
        args=overrides, return_remaining_strings=True, look_for_args_file=False
    )
    for part in parts:  # a JSON text has become a mapping
        check_numbers({name: value for name, value in vars(part).items() if isinstance(value, dict)})
    return [*parts, rest]


class RecipeParser(HfArgumentParser):
    """The parser of transformers, which raises for an invalid value instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Use recipe values as defaults; scalars as words, because argparse only checks the type of words."""
        lists = {action.dest for action in self._actions if action.nargs == "+"}
        words = {key: str(value) if isinstance(value, SCALARS) else value for key, value in values.items()}
        listed = {key: [value] for key, value in words.items() if key in lists and isinstance(value, str)}
        self.set_defaults(**words | listed)
        for action in self._actions:
            action.required = action.required and action.dest not in values


def one_line(error: Exception) -> str:
    """A library's message as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


@functools.cache
def field_types(kinds: Kinds) -> dict[str, Any]:
    """The type of each field that a recipe may set."""
    return {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}


def field_names(kinds: Kinds) -> list[str]:
    """All fields that a recipe may set."""
    return [f.name for kind in kinds for f in dataclasses.fields(kind) if f.init]


def check_values(kinds: Kinds, values: Mapping[str, Any], *, where: str) -> None:
    """Reject empty values, and lists for scalar fields; argparse only checks words."""
    hints = field_types(kinds)
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
