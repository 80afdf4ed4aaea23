"""Evaluations on benchmarks during training: one file each, in a folder of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgpo.run.folder import RunPaths
from vgpo.run.storage import RunFolderError, read_object, to_json, write_file


def write_suite(run: RunPaths, step: int, evaluation: Mapping[str, Any]) -> None:
    """Write an evaluation after a step: `protocol`, and `tasks` with source, scores and answers by name.

    Raises:
        RunFolderError: Writing failed.
    """
    write_file(run.suite_path / f"step-{step}.json", to_json({"step": step, **evaluation}, indent=2) + b"\n")


def suite_files(run: RunPaths) -> dict[int, Path]:
    """The files of the evaluations by step, in order."""
    paths = run.suite_path.glob("step-*.json")
    steps = {int(number): path for path in paths if (number := path.stem.removeprefix("step-")).isdecimal()}
    return dict(sorted(steps.items()))


def damaged_suite_files(run: RunPaths) -> dict[Path, str]:
    """The files that cannot be read, and why."""
    found = {}
    for path in suite_files(run).values():
        try:
            read_object(path)
        except RunFolderError as error:
            found[path] = str(error)
    return found


def drop_suite_files(run: RunPaths, step: int) -> None:
    """Delete the files of later steps, which a resumed run writes again, and those that cannot be read."""
    later = [path for evaluated, path in suite_files(run).items() if evaluated > step]
    for path in {*later, *damaged_suite_files(run)}:
        path.unlink()
