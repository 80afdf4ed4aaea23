"""The end of a run on verl: its weights are checked, its report is drawn, and it is marked as finished."""

import logging

from vgpo.checkpoints import CheckpointStore
from vgpo.report import write_report
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.closing import say_results

logger = logging.getLogger(__name__)


def finish_run(folder: RunFolder) -> None:
    """Close the folder of a run whose steps are all done.

    Raises:
        RunFolderError: The trained weights are not there.
    """
    check_final(folder)
    draw_report(folder)
    lines = folder.read_metrics()
    folder.write_finished(max(int(line["step"]) for line in lines), float(lines[-1].get("epoch", 0.0)))
    say_results(folder)


def check_final(folder: RunFolder) -> None:
    """Whether the trained weights are there: a run that was killed while it saved them has none.

    Raises:
        RunFolderError: they are not.
    """
    if (damage := CheckpointStore.verify(folder.final_path)) is not None:
        raise RunFolderError(
            f"{folder.final_path} is not complete ({damage}), although all steps are done: the run was killed while "
            f"it was written. `vgpo export {folder.path} OUT --which last` takes the last checkpoint."
        )


def draw_report(folder: RunFolder) -> None:
    """Draw the report; a page that cannot be drawn is a warning: the run's figures are safe."""
    try:
        write_report([folder.path], folder.report_path)
    except Exception:
        logger.warning(
            "%s could not be drawn; `vgpo report %s` draws it.", folder.report_path, folder.path, exc_info=True
        )
