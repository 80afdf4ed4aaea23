"""What every training prints last."""

from rich.console import Console

from vgpo.run.folder import RunFolder
from vgpo.terminal import from_here, say


def say_results(folder: RunFolder) -> None:
    """Print where the final weights and the report of a run are."""
    console = Console()
    say(console, f"weights: {from_here(folder.final_path)}")
    say(console, f"report: {from_here(folder.report_path)}")
