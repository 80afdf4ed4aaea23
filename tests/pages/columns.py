"""Which columns of a page's tables have numbers but no tooltip."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Cell:
    """A head or a cell; `explained`: it is a tooltip, or has one inside."""

    is_number: bool
    span: int
    explained: bool
    text: str = ""


@dataclass
class Row:
    is_head: bool
    cells: list[Cell] = field(default_factory=list)


class Tables(HTMLParser):
    """The rows of all tables of a page, of each table one list."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[Row]] = []
        self.in_head = False
        self.cell: Cell | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag in ("thead", "tbody"):
            self.in_head = tag == "thead"
        elif tag == "tr":
            self.tables[-1].append(Row(self.in_head))
        elif tag in ("th", "td"):
            classes = (found.get("class") or "").split()
            self.cell = Cell("number" in classes, int(found.get("colspan") or 1), False)
            self.tables[-1][-1].cells.append(self.cell)
        elif self.cell is not None and found.get("title"):
            self.cell.explained = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.text += data


def unexplained_columns(page: str) -> list[str]:
    """Heads of the columns that have numbers and no tooltip, as "table 1, column 2: label"."""
    found = {}
    for number, table in enumerate(Tables(page).tables, start=1):
        heads: list[Cell] = []
        for row in table:
            if row.is_head:
                heads = [cell for cell in row.cells for _ in range(cell.span)]
            for at in unexplained_cells(row, heads):
                label = heads[at].text.strip() if 0 <= at < len(heads) else "no head"
                found[f"table {number}, column {at + 1}: {label}"] = None
    return list(found)


def unexplained_cells(row: Row, heads: list[Cell]) -> list[int]:
    """Columns of the row's numbers without a tooltip; counted from the right, since a cell may span rows."""
    at = sum(cell.span for cell in row.cells) if row.is_head else len(heads)
    missing = []
    for cell in reversed(row.cells):
        at -= cell.span
        known = 0 <= at < len(heads) and heads[at].explained
        if cell.is_number and not known:
            missing.append(at)
    return missing
