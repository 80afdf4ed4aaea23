"""What the commands print with."""

from rich.console import Console
from rich.table import Column


def say(console: Console, text: str) -> None:
    """Print text as it is, in lines as long as they are."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def right(title: str) -> Column:
    """A column of numbers."""
    return Column(title, justify="right")
