"""`vgpo scores`: evaluations on benchmarks in one table."""

from pathlib import Path

from vgpo.evaluation.errors import EvaluationError
from vgpo.run import RunFolderError
from vgpo.run.storage import write_file
from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.scoreboard import legend, read_scoreboard, scoreboard_csv, scoreboard_table
from vgpo.terminal import say, table_console

ERRORS = (EvaluationError, RunFolderError)


def run(folders: list[Path], csv: Path | None) -> None:
    """Print the scores of the folders, and write them to `csv`.

    Raises:
        EvaluationError, RunFolderError: As in `read_scoreboard`.
    """
    board = read_scoreboard([EvaluationFolder.open(folder) for folder in folders])
    if csv is not None:
        write_file(csv, scoreboard_csv(board).encode("utf-8"))
    console = table_console()
    console.print(scoreboard_table(board))
    for line in legend(board):
        say(console, line)
