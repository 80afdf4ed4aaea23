#!/usr/bin/env python3
"""Writes the table of docs/scale_out.md from `vgpo.verl.fields`: `.venv/bin/python .ci/verl_fields_page.py`.

The text around the table is edited in the page itself.
"""

import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from vgpo.verl.fields import REMOVE, SECTIONS, Field, Mapped, Ours, Refused, Unused

PAGE = Path(__file__).parents[1] / "docs" / "scale_out.md"
BEGIN, END = "<!-- fields: written by .ci/verl_fields_page.py -->", "<!-- end of fields -->"


def main() -> None:
    """Rewrite the page, or exit with a message where it has no place for the table."""
    try:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"{PAGE}: {error}")


def with_table(page: str, sections: Mapping[str, Mapping[str, Field]]) -> str:
    """The page with a new table between its two markers.

    Raises:
        ValueError: a marker is missing or occurs twice.
    """
    for marker in (BEGIN, END):
        if page.count(marker) != 1:
            raise ValueError(f"found {marker!r} {page.count(marker)} times, expected it once")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{''.join(map(section, sections, sections.values()))}{END}{rest.split(END)[1]}"


def section(title: str, fields: Mapping[str, Field]) -> str:
    """A heading and a Markdown table; adjacent fields of one kind are in one row."""
    lines = [f"### {title}\n", "| field | on verl |", "|---|---|"]
    for kind, names in groupby(fields, key=lambda name: fields[name]):
        cell = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {cell} | {meaning(kind)} |".replace("${", "$\\{"))
    return "\n".join(lines) + "\n\n"


def meaning(kind: Field) -> str:
    """What a field becomes, in a cell of the table."""
    match kind:
        case Ours(note):
            return "as on TRL" + (f"; {note}" if note else "")
        case Mapped(keys, note):
            return ", ".join(f"`{short(key)}`" for key in keys) + (f": {note}" if note else "")
        case Unused(why):
            return f"no effect: {why}"
        case Refused(why):
            return f"**refused**: {why.removesuffix(f'; {REMOVE}')}"


def short(key: str) -> str:
    """A key without the section that most of them have."""
    return key.removeprefix("actor_rollout_ref.")


if __name__ == "__main__":
    main()
