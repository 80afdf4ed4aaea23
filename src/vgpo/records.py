"""Records that other programs may have written: strict pydantic models, and their errors as sentences."""

import json
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

NUM_SHOWN = 3  # errors in a message
MAX_CHARACTERS = 80  # of a wrong value in a message
# Lists of these have names in the plural; an element is "rollout 1" in a message.
RECORDS = ("models", "images", "grids", "rollouts")
# By pydantic's type of error: what it expects, in the words of JSON.
EXPECTED = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "union_tag_invalid": "'from' to be one of {expected_tags}",
    "union_tag_not_found": "the key 'from'",
}

# One error per list: the others are most often the same.
Numbers = Annotated[list[float | None], Field(fail_fast=True)]
Whole = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


class Record(BaseModel):
    """A JSON object. Types are strict: `"1"` and `true` are not numbers. Other keys are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def fault(message: str, *place: str | int) -> PydanticCustomError:
    """What a validator of a record raises; `place` inside of the record."""
    return PydanticCustomError("fault", "{message}", {"message": message, "place": place})


def describe_faults(error: ValidationError) -> str:
    """The first few faults of a record, each with its place, what was found and what was expected."""
    faults = [sentence(one) for one in error.errors(include_url=False)[:NUM_SHOWN]]
    if error.error_count() > NUM_SHOWN:
        faults.append(f"and {error.error_count() - NUM_SHOWN} more")
    return "; ".join(faults)


def sentence(error: ErrorDetails) -> str:
    """Where a fault is, what was found and what was expected."""
    context = error.get("ctx", {})
    place = place_of((*error["loc"], *context.get("place", ())))
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] == "fault":
        return f"{place}: {context['message']}"
    expected = EXPECTED[error["type"]].format(**context) if error["type"] in EXPECTED else error["msg"]
    found = describe_value(context.get("tag", error["input"]))
    return f"{place + ': ' if place else ''}found {found}, expected {expected}"


def place_of(location: tuple[str | int, ...]) -> str:
    """("rollouts", 1, "focus", 3) as "rollout 1, focus[3]"."""
    place = ""
    for before, part in pairwise((None, *location)):
        if isinstance(part, str):
            place += f", {part}" if place else part
        elif before in RECORDS:
            place = f"{place.removesuffix('s')} {part}"
        else:
            place += f"[{part}]"
    return place


def describe_value(value: Any) -> str:
    """A value of JSON, of bounded length."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value, default=repr)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."
