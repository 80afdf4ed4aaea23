"""`vgpo watch`: a run, as its folder shows it, in a terminal."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vgpo.places import missing
from vgpo.report.dashboard import view
from vgpo.report.watched import WatchedRun
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.choice import run_in
from vgpo.terminal import output_is_lost, say

ERRORS = (RunFolderError,)

MAX_SHARE = 0.02  # of the time, that looking and drawing may take


def run(path: Path, *, every: float, once: bool) -> None:
    """Show the run in `path` until it is over or Ctrl-C is pressed; once only where there is no terminal to draw on.

    Args:
        path: a run folder, or a folder with one run in it; a run folder may not exist yet, unless `once`.
        every: seconds between two drawings, at least.
        once: print one snapshot.

    Raises:
        RunFolderError: a file of the run is broken, the folder holds several runs, neither it nor the folder around it
            exists, or there is no run to show once.
    """
    check_place(path)
    path = run_in(path)
    console, watched = Console(), WatchedRun(path)
    if once or not console.is_terminal or console.is_dumb_terminal:
        if not once:
            say(Console(stderr=True), "output is not a terminal; printing one snapshot (as with --once)")
        RunFolder.open(path)  # or say what is missing
        watched.read()
    else:
        with contextlib.suppress(KeyboardInterrupt):
            follow(watched, console, every=every)
    if watched.begun:
        show(watched, console)


def check_place(path: Path) -> None:
    """Raise RunFolderError if there can be no run at `path`: its folder is missing, or the path is not usable."""
    try:
        path.exists()  # a name that is too long, for example
        has_parent = path.absolute().parent.is_dir()
    except OSError as error:
        raise RunFolderError(f"cannot access {str(path)!r}: {error.strerror}; correct the path") from error
    if not has_parent:
        raise RunFolderError(f"{missing(str(path), 'folder')}; correct the path")


def follow(
    watched: WatchedRun, console: Console, *, every: float, pause: Callable[[float], None] = time.sleep
) -> None:
    """Draw the run on the whole terminal, again after every pause, until it is over."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            watched.read()
            size = console.size
            lines = view(watched, size.width, size.height, time.time())
            live.update(Text("\n").join(lines), refresh=True)
            if watched.over or output_is_lost():
                return
            pause(max(every, (time.monotonic() - started) / MAX_SHARE))


def show(watched: WatchedRun, console: Console) -> None:
    """Print one view that leaves room for the prompt below it."""
    for line in view(watched, console.width, console.height - 1, time.time()):
        console.print(line, no_wrap=True, overflow="crop")
