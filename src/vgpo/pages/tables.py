"""Columns of tables in pages."""

from dataclasses import dataclass

NUMBER = "number"


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        label: What it says.
        about: What the column is, with its unit; shown as a tooltip. Columns of numbers need it.
        kind: Classes of the cell: "number" for numbers.
        span: Columns that it spans.
        scale: Labels above a column of plots, from left to right.
    """

    label: str
    about: str = ""
    kind: str = ""
    span: int = 1
    scale: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if NUMBER in self.kind.split() and not self.about:
            raise ValueError(f"column {self.label!r}: found numbers without a tooltip; say what they are in `about`")
