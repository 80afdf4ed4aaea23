"""Progress of an evaluation: a bar on a terminal, and periodic lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

from vgpo.evaluation.accuracy import progress_bar
from vgpo.terminal import say

SECONDS_BETWEEN_LINES = 60.0


class SuiteProgress:
    """Answers of all tasks, with an estimate of the time that is left.

    Args:
        total: Answers of all tasks.
        console: Where it is shown.
        bar: Drawn on a terminal.
    """

    def __init__(self, total: int, console: Console, bar: Progress) -> None:
        self.total = total
        self.console = console
        self.bar = bar
        self.task: TaskID = bar.add_task("evaluating", total=total)
        self.title = ""
        self.num_done = 0
        self.started = self.last_line = time.monotonic()

    def begin(self, title: str) -> None:
        """The next task."""
        self.title = title
        self.bar.update(self.task, description=title)

    def advance(self, number: int = 1) -> None:
        """Count further answers."""
        self.num_done += number
        self.bar.advance(self.task, number)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            say(self.console, self.line(now - self.started))

    def line(self, seconds: float) -> str:
        """A progress line with an estimate of the remaining time."""
        left = seconds / self.num_done * (self.total - self.num_done)
        return (
            f"{self.title}: {self.num_done:,} of {self.total:,} answers of all tasks, about {left / 60:.0f} min left"
        )


@contextmanager
def progress_over(total: int, console: Console) -> Iterator[SuiteProgress]:
    """Show the progress of an evaluation inside the block."""
    with progress_bar(disable=False, console=console) as bar:
        yield SuiteProgress(total, console, bar)
