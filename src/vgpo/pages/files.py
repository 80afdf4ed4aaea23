"""Where a page and its data are written."""

from pathlib import Path

SUFFIXES = (".json", ".html")


def paired_paths(out: Path, name: str) -> tuple[Path, Path]:
    """The file of numbers and the page.

    Args:
        out: A folder, in which both are called `name`, or the name of one of the two.
        name: Without a suffix.
    """
    base = out.with_suffix("") if out.suffix in SUFFIXES else out / name
    json_path, html_path = (base.with_name(base.name + suffix) for suffix in SUFFIXES)
    return json_path, html_path
