"""`vgpo report`: one page over one run or several."""

from pathlib import Path

from rich.console import Console

from vgpo.report import write_report
from vgpo.run import RunFolderError

ERRORS = (RunFolderError,)


def run(runs: list[Path], out: Path) -> None:
    """Draw `out` from run folders, their curves over each other."""
    write_report(runs, out)
    Console().print(f"report: {out}", highlight=False, markup=False, soft_wrap=True)
