"""`vgpo report`: one page over one run or several, or over one evaluation or two."""

from pathlib import Path

from rich.console import Console

from vgpo.evaluation.errors import EvaluationError
from vgpo.recipe.loading import quiet_libraries
from vgpo.report import write_report
from vgpo.report.data import MAX_RUNS
from vgpo.run import RunFolderError
from vgpo.run.choice import only_run, runs_below
from vgpo.run.outputs import is_run
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.page import write_evaluation_page
from vgpo.terminal import say

ERRORS = (RunFolderError, EvaluationError)


def run(folders: list[Path], out: Path, *, num_rows: int | None = None, with_images: bool = True) -> None:
    """Draw `out` from run folders, their curves over each other, or from evaluation folders.

    Args:
        folders: Of one kind; a folder with up to eight runs in it, as of a quickstart, stands for these.
        out: The HTML file to write.
        num_rows: Rows of evaluations to show; None for the default.
        with_images: Whether these have their images.

    Raises:
        RunFolderError: Folders of both kinds, or options of evaluations for runs.
    """
    evaluations = [folder for folder in folders if EvaluationFolder(folder).exists]
    if evaluations:
        check_one_kind(folders, evaluations)
        quiet_libraries()
        options = {} if num_rows is None else {"num_rows": num_rows}
        write_evaluation_page(folders, out, with_images=with_images, **options)
    elif num_rows is not None or not with_images:
        raise RunFolderError("--rows and --no-images are for evaluation folders, and these are runs; leave them out")
    else:
        runs = [run for folder in folders for run in runs_of(folder)]
        if runs != folders:
            say(Console(), "\n".join(f"run: {run}" for run in runs))
        write_report(runs, out)
    say(Console(), f"report: {out}")


def runs_of(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it.

    Raises:
        RunFolderError: These are more than one page can show; lists them.
    """
    if is_run(folder) or not folder.is_dir():
        return [folder]
    runs = list(runs_below(folder))
    if len(runs) > MAX_RUNS:
        only_run(folder, runs)
    return runs or [folder]


def check_one_kind(folders: list[Path], evaluations: list[Path]) -> None:
    """Raises:
    RunFolderError: Not all folders are evaluations.
    """
    others = [folder for folder in folders if folder not in evaluations]
    if others:
        raise RunFolderError(
            f"{evaluations[0]} holds an evaluation and {others[0]} does not; write one page about run folders and "
            "another about evaluation folders"
        )
