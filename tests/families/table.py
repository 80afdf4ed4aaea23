"""The support table of the documentation: run the checks of every family and write what they find.

python -m tests.families.table
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from tests.families.build import FAMILIES, build_checkpoint
from tests.families.checks import CHECKS, LIMITS, Family
from vgpo.recipe.loading import quiet_libraries

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
START = "<!-- Written by `python -m tests.families.table`; do not edit. -->"
END = "<!-- end of the table -->"
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


def committed_lines(page: str) -> list[str]:
    """The table and its footnotes as they stand between the marks of a page, without the line of versions."""
    body = page.partition(START)[2].partition(END)[0]
    return body.strip().splitlines()[2:]


def write_page(found: Found) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    lines = [START, "", f"Found with {', '.join(versions)}, on CPU.", "", *table_lines(found)]
    PAGE.write_text(before + "\n".join(lines) + END + after, encoding="utf-8")


def main() -> None:
    quiet_libraries()
    console = Console()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Path(scratch, "checkpoints")
        for name in FAMILIES:
            build_checkpoint(name, checkpoints / name)
        for name in FAMILIES:
            family = Family(name, checkpoints, Path(scratch, "out"))
            for check in CHECKS:
                found[name, check] = passes(family, check)
            console.print(f"{name}: {sum(found[name, check] for check in CHECKS)} of {len(CHECKS)}", markup=False)
    write_page(found)


if __name__ == "__main__":
    main()
