"""Curves and shades made of characters."""

from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character: four rows of two
BARS = "▁▂▃▄▅▆▇█"


def curve(xs: Sequence[float], ys: Sequence[float], *, width: int, height: int, low: float, high: float) -> list[str]:
    """A line through points, in `height` rows of `width` braille characters.

    Args:
        xs: in rising order, at least one.
        ys: one for each of `xs`. Where several points share a column of dots, their mean is drawn.
        low, high: the values of the lowest and the highest row of dots.
    """
    rows = [round((4 * height - 1) * (1 - share(y, low, high))) for y in columns(xs, ys, 2 * width)]
    cells = [[0x2800] * width for _ in range(height)]
    for column, row in enumerate(rows):
        before = rows[max(column - 1, 0)]
        # From the neighbour's row on, so that a steep line has no gaps.
        for dot in range(min(row, before + 1), max(row, before - 1) + 1):
            cells[dot // 4][column // 2] |= DOTS[dot % 4][column % 2]
    return ["".join(map(chr, row)) for row in cells]


def columns(xs: Sequence[float], ys: Sequence[float], count: int) -> list[float]:
    """The values of a line at `count` places from its first point to its last; of one point, that value alone."""
    if xs[0] == xs[-1]:
        return [sum(ys) / len(ys)]
    points: dict[int, list[float]] = {}
    for x, y in zip(xs, ys, strict=True):
        points.setdefault(round((count - 1) * (x - xs[0]) / (xs[-1] - xs[0])), []).append(y)
    means = {column: sum(some) / len(some) for column, some in points.items()}
    values, left = [], 0
    for right in sorted(means):
        for column in range(left + 1, right):
            part = (column - left) / (right - left)
            values.append(means[left] + part * (means[right] - means[left]))
        values.append(means[right])
        left = right
    return values


def bars(values: Sequence[float | None], width: int) -> str:
    """One bar for each value, or for the mean of each stretch where there are more than `width`; a dot for None."""
    stretch = -(-len(values) // width) or 1
    parts = [[v for v in values[i : i + stretch] if v is not None] for i in range(0, len(values), stretch)]
    means = [sum(part) / len(part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    return "".join("·" if m is None else BARS[round(7 * share(m, min(known), max(known)))] for m in means)


def share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, 0 to 1; in the middle if these are the same."""
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def short(value: float) -> str:
    """A number in seven characters or less, for all that metrics hold."""
    if abs(value) >= 99_999.5:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 3.2 s, 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
