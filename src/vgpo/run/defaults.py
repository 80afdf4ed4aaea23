"""Defaults of the settings that a run changed; the versions of vgpo and TRL that it ran with have them."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any


def changed_defaults(records: Sequence[Any], *, derived: Sequence[Any] = ()) -> dict[str, Any]:
    """Defaults of the fields whose value differs from it, by name.

    Args:
        records: Dataclass instances.
        derived: Further ones, which derive the fields whose default is None from others: these are left out.
    """
    plain = {field.name: pair for record in records for field, pair in pairs(record)}
    set_later = {field.name: pair for record in derived for field, pair in pairs(record) if pair[0] is not None}
    return {name: default for name, (default, value) in (plain | set_later).items() if value != default}


def pairs(record: Any) -> Iterator[tuple[Field[Any], tuple[Any, Any]]]:
    """The fields that have a default, with default and value."""
    for field in fields(record):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING:
            yield field, (default, getattr(record, field.name))
