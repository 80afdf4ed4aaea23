"""`vgpo compare`: all runs of a study, and the table, curves and page that are made of them."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vgpo.checkpoints.store import file_entry
from vgpo.commands.loading import is_toy, quiet_libraries, write_toy
from vgpo.commands.recipe import RecipeError, read_mapping
from vgpo.commands.study_file import PlannedRun, Study, StudyError, differing, load_study
from vgpo.commands.study_jobs import Workers, folder_of
from vgpo.commands.terminal import say
from vgpo.data import DataError
from vgpo.report import RunFolderError
from vgpo.report.storage import read_object, to_json, write_file
from vgpo.study.outputs import terminal_tables, write_outputs
from vgpo.study.results import Place, study_data
from vgpo.study.runs import StudyRun
from vgpo.text import visible

ERRORS = (StudyError, RecipeError, DataError, RunFolderError)
GROUND_FILE = "ground.json"
LOG_LINES = 15
LOG_BYTES = 20_000


def run(study_file: Path, *, out: Path | None, jobs: int) -> bool:
    """Run what is not done yet, then draw everything anew. Returns whether all runs are done.

    Raises:
        StudyError: The study cannot be run as it is written, or the folder is another study's or in use.
        SystemExit: A signal ended it; the runs at work have saved what they had, and what is done is drawn.
    """
    quiet_libraries()
    console = Console()
    study = load_study(study_file)
    out = out or Path("runs") / study_file.stem
    with locked(out) as lock:
        refuse_other_runs(study, out)
        refuse_other_ground(study, out)
        todo = [planned for planned in study.runs if not folder_of(out, planned).is_done]
        say(console, f"{len(study.runs)} runs, {len(study.runs) - len(todo)} of them done: {out}")
        outcomes = Workers(out, words_by_setting(todo, out), jobs, lock, console).run_all(todo)
        for planned, status in outcomes.failed:
            report_failure(folder_of(out, planned), planned, status, console)
        draw(study, out, console)
    if outcomes.stopped is not None:
        raise SystemExit(outcomes.stopped)
    return not outcomes.failed


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold the folder; gives the descriptor, which children hold too, so that one that outlives us keeps it locked.

    Raises:
        StudyError: Somebody else holds it.
    """
    path = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StudyError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StudyError(
            f"{out} is in use by another vgpo compare (process {holder}) or by a run that it left behind; wait for "
            "it, or choose another --out"
        ) from error
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_other_runs(study: Study, out: Path) -> None:
    """Whether what lies in the folder is of this study; runs that it no longer names are left alone.

    Raises:
        StudyError: A run there has another recipe; names what differs.
    """
    for planned in study.runs:
        one = folder_of(out, planned)
        found = read_mapping(one.recipe_path) if one.recipe_path.is_file() else planned.values
        changed = differing(found, planned.values)
        if changed:
            raise StudyError(
                f"{one.path} is a run with other settings ({', '.join(changed)}); undo the change, delete this run, "
                "or choose another --out"
            )
        if one.is_done and (files := one.changed_files()):
            raise StudyError(
                f"{one.path}: {', '.join(files)} changed after the run was done; put back what was there, or delete "
                "this run so that it is made again"
            )


def refuse_other_ground(study: Study, out: Path) -> None:
    """Whether start and data, as far as they lie on this machine, are those of the runs that are there.

    Raises:
        StudyError: Other files lie at their paths; names setting and field.
    """
    path = out / GROUND_FILE
    found = read_object(path) if path.is_file() else {}
    now = {planned.setting: digests_of_ground(planned.values) for planned in study.runs if planned.is_start}
    for setting, digests in now.items():
        changed = [key for key in digests if found.get(setting, digests).get(key) != digests[key]]
        if changed:
            raise StudyError(
                f"setting {setting}: {', '.join(changed)} has other contents than when the runs in {out} began; put "
                "back what was there, or choose another --out"
            )
    write_file(path, to_json({**found, **now}, indent=2) + b"\n")


def digests_of_ground(values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> SHA-256 of what lies at its path, of the fields that name one."""
    paths = {key: Path(values[key]) for key in ("model_name_or_path", "train_data", "eval_data")}
    return {key: digest_of(path) for key, path in paths.items() if path.exists()}


def digest_of(path: Path) -> str:
    """Of a file's bytes, or of names and bytes of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    lines = [f"{file.relative_to(path)} {file_entry(file)['sha256']}" for file in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def words_by_setting(todo: Sequence[PlannedRun], out: Path) -> dict[str, list[str]]:
    """Write the embedded task's sets, one for all runs of a setting; gives the words that name them."""
    words = {}
    for planned in {planned.setting: planned for planned in todo}.values():
        sources = {key: planned.values[key] for key in ("train_data", "eval_data")}
        words[planned.setting] = [
            word
            for key, source in sources.items()
            if is_toy(source)
            for word in (f"--{key}", str(write_toy(source, out / "data" / planned.setting)))
        ]
    return words


def report_failure(one: StudyRun, planned: PlannedRun, status: int, console: Console) -> None:
    """Show the end of a failed run's log."""
    with one.log_path.open("rb") as log:
        log.seek(max(0, one.log_path.stat().st_size - LOG_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    console.print(
        Text(f"\n{planned.name} failed with exit status {status}; the end of {one.log_path}:", style="bold red")
    )
    say(console, visible("\n".join(f"  {line}" for line in lines)))


def draw(study: Study, out: Path, console: Console) -> None:
    """Write table, rows, curves and page of the runs that are done."""
    done = [
        Place(planned.setting, planned.method, planned.seed, folder_of(out, planned).path)
        for planned in study.runs
        if folder_of(out, planned).is_done
    ]
    if not any(not place.is_start for place in done):
        say(console, "no run is done yet: nothing to compare")
        return
    data = study_data(done, study.comparisons, name=study.path.stem)
    written = write_outputs(out, data)
    for table in terminal_tables(data):
        console.print(table)
    say(console, "\n".join(f"{what}: {path}" for what, path in written.items()))
