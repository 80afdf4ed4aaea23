"""`vgpo report`: one page over one run or several, or over one evaluation or two."""

from pathlib import Path

from rich.console import Console

from vgpo.evaluation.errors import EvaluationError
from vgpo.recipe.loading import quiet_libraries
from vgpo.report import write_report
from vgpo.run import RunFolderError
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.page import write_evaluation_page

ERRORS = (RunFolderError, EvaluationError)


def run(folders: list[Path], out: Path, *, num_rows: int | None = None, with_images: bool = True) -> None:
    """Draw `out` from run folders, their curves over each other, or from evaluation folders.

    Args:
        folders: Of one kind.
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
        write_report(folders, out)
    Console().print(f"report: {out}", highlight=False, markup=False, soft_wrap=True)


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
