"""`vgpo compare`: all runs of a study, and the table, curves and page that are made of them."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vgpo.data import DataError
from vgpo.evaluation.errors import EvaluationError
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import is_toy, quiet_libraries, write_toy
from vgpo.run import RunFolderError
from vgpo.study.benchmarks import write_benchmarks
from vgpo.study.checks import check_inputs_unchanged, check_runs_can_start, check_runs_match
from vgpo.study.file import PlannedRun, Study, StudyError, load_study
from vgpo.study.folder import StudyRun
from vgpo.study.jobs import Workers, folder_of, unfinished
from vgpo.study.outputs import terminal_tables, write_outputs
from vgpo.study.results import RunKey, study_data
from vgpo.terminal import say, table_console
from vgpo.text import visible

ERRORS = (StudyError, RecipeError, DataError, EvaluationError, RunFolderError)
LOG_LINES = 15
LOG_BYTES = 20_000


def run(study_file: Path, *, out: Path | None, jobs: int) -> bool:
    """Run what is not done yet, then draw all outputs again. Returns whether all runs are done.

    Raises:
        StudyError: The study cannot be run as it is written, its runs could not begin, or the folder is another
            study's or in use.
        SystemExit: A signal ended it; the running trainings have saved their step, and the finished runs are drawn.
    """
    quiet_libraries()
    console = table_console()
    study = load_study(study_file)
    if jobs > 1 and any(planned.launch for planned in study.runs):
        raise StudyError(f"{study_file}: --jobs {jobs}, expected 1: a run that is launched takes all GPUs")
    out = out or Path("runs") / study_file.stem
    with locked(out) as lock:
        check_runs_match(study, out)
        check_inputs_unchanged(study, out)
        todo = unfinished(study, out)
        say(console, f"{len(study.runs)} runs, {len(study.runs) - len(todo)} of them done: {out}")
        written = write_sets(todo, out)
        check_runs_can_start(study, todo, written, out)
        sets = write_held_out_sets(todo, out)
        outcomes = Workers(out, written, jobs, lock, console, study.suite, sets).run_all(todo)
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
        StudyError: Another process holds it.
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


def write_sets(todo: Sequence[PlannedRun], out: Path) -> dict[str, dict[str, str]]:
    """Write the toy task's sets, one for all runs of a setting; by setting, the fields that name them."""
    written = {}
    for planned in {planned.setting: planned for planned in todo}.values():
        sources = {key: planned.values[key] for key in ("train_data", "eval_data")}
        folder = out / "data" / planned.setting
        written[planned.setting] = {
            key: str(write_toy(source, folder)) for key, source in sources.items() if is_toy(source)
        }
    return written


def write_held_out_sets(todo: Sequence[PlannedRun], out: Path) -> dict[str, dict[str, str]]:
    """Write further sets of the toy task; by setting and name, the files."""
    return {
        setting: {
            name: str(write_toy(source, out / "data" / setting / name))
            for name, source in planned.held_out_sets.items()
            if is_toy(source)
        }
        for setting, planned in {planned.setting: planned for planned in todo}.items()
    }


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
        RunKey(planned.setting, planned.method, planned.seed, folder_of(out, planned).path)
        for planned in study.runs
        if folder_of(out, planned).is_done
    ]
    if not any(not place.is_start for place in done):
        say(console, "no run has finished yet: nothing to compare")
        return
    data = study_data(done, study.comparisons, name=study.path.stem)
    written = write_outputs(out, data)
    files, tables = write_benchmarks(out, done) if study.suite else ({}, [])
    for table in [*terminal_tables(data), *tables]:
        console.print(table)
    say(console, "\n".join(f"{what}: {path}" for what, path in (written | files).items()))
