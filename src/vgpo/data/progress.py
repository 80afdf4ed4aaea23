"""A progress bar for work over the rows of a dataset."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from vgpo.terminal import draws_bars

T = TypeVar("T")

LONG_SET = 500  # rows from which on a bar is shown


def with_bar(
    items: Iterable[T], title: str, *, rows: int, total: int | None = None, shown: bool = True
) -> Iterable[T]:
    """`items`, with a bar where one can be drawn, for 500 `rows` or more; `total`: number of items, if it differs."""
    console = Console(stderr=True)
    shown = shown and draws_bars(console) and rows >= LONG_SET
    return track(items, title, total or rows, console=console, disable=not shown, transient=True)
