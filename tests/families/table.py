"""The support tables of the documentation: run the checks of every family and write what they find.

python -m tests.families.table
"""

from __future__ import annotations

import logging
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.families.build import FAMILIES, TRIED, build_checkpoint
from tests.families.checks import CHECKS, LIMITS, Family
from tests.families.outcomes import Outcome, outcome
from vgpo.recipe.loading import quiet_libraries

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
# Of both tables: the mark that opens it, and the one that ends it.
OUTCOMES = ("<!-- Outcomes, written by `make families`; do not edit. -->", "<!-- end of the outcomes -->")
MATRIX = ("<!-- Checks, written by `make families`; do not edit. -->", "<!-- end of the checks -->")
COLUMNS = ("family", "model_type", "images in a row", "trains", "head", "shared prompt", "several processes")
LIBRARIES = ("torch", "transformers", "trl", "peft")

Found = Mapping[tuple[str, str], bool]


def passes(family: Family, check: str) -> bool:
    """Whether a check passes; one that fails although nothing is known against it is an error.

    Raises:
        AssertionError: it fails unexpectedly, or passes although `LIMITS` says that it cannot.
    """
    if (family.name, check) not in LIMITS:
        CHECKS[check](family)
        return True
    try:
        CHECKS[check](family)
    except (AssertionError, RuntimeError, ValueError):
        return False
    raise AssertionError(f"{family.name} passes {check!r}: take it out of LIMITS.")


def table_lines(found: Found) -> list[str]:
    """The table in Markdown, a row for each family, with a footnote for each no."""
    reasons = list(dict.fromkeys(LIMITS[key] for key, passed in found.items() if not passed))

    def cell(family: str, check: str) -> str:
        key = (family, check)
        return "yes" if found[key] else f"no [{reasons.index(LIMITS[key]) + 1}]"

    lines = [" | ".join(["", "family", *CHECKS, ""]).strip(), "|---" * (1 + len(CHECKS)) + "|"]
    for family in FAMILIES:
        lines.append(" | ".join(["", f"`{family}`", *(cell(family, check) for check in CHECKS), ""]).strip())
    return [*lines, "", *(f"[{number}] {reason}\n" for number, reason in enumerate(reasons, 1))]


def outcome_line(found: Outcome) -> str:
    """A row of the first table."""
    if found.why_not:
        cells = ["", f"no: {found.why_not}", "", "", ""]
    else:
        separate = re.sub(r"model_type '\w+': ", "", found.why_separate)
        separate = re.sub(r": [\d.e+-]+ \(max .*", " differ, as measured", separate)
        cells = [
            ", ".join(map(str, found.numbers)),
            "yes",
            found.head,
            f"no: {separate}" if separate else "yes",
            "yes" if found.blank else "no",
        ]
    return " | ".join(["", f"`{found.family}`", f"`{found.model_type}`", *cells, ""]).strip()


def outcome_lines(found: Iterable[Outcome]) -> list[str]:
    """The first table in Markdown."""
    head = [" | ".join(["", *COLUMNS, ""]).strip(), "|---" * len(COLUMNS) + "|"]
    return [*head, *map(outcome_line, found)]


def committed_lines(page: str, marks: tuple[str, str]) -> list[str]:
    """A table and its footnotes as they stand between the marks of a page, without the line of versions."""
    body = page.partition(marks[0])[2].partition(marks[1])[0]
    return body.strip().splitlines()[2:]


def write_table(lines: list[str], marks: tuple[str, str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(marks[0])
    after = rest.partition(marks[1])[2]
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    table = [marks[0], "", f"Found with {', '.join(versions)}, on CPU.", "", *lines]
    PAGE.write_text(before + "\n".join(table) + "\n" + marks[1] + after, encoding="utf-8")


def main() -> None:
    quiet_libraries()
    logging.disable(logging.WARNING)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Path(scratch, "checkpoints")
        for name in TRIED:
            build_checkpoint(name, checkpoints / name)
        families = {name: Family(name, checkpoints, Path(scratch, "out")) for name in TRIED}
        outcomes = [outcome(family) for family in track(families.values(), "outcomes", console=console)]
        write_table(outcome_lines(outcomes), OUTCOMES)
        found = {
            (name, check): passes(families[name], check)
            for name in track(FAMILIES, "checks", console=console)
            for check in CHECKS
        }
    write_table(table_lines(found), MATRIX)


if __name__ == "__main__":
    main()
