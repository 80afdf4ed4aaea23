"""Curves and shades made of characters."""

import itertools
from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character: four rows of two
BARS = "▁▂▃▄▅▆▇█"
SHORT = 7  # characters of a number


def curve(
    xs: Sequence[float], ys: Sequence[float | None], *, width: int, height: int, low: float, high: float
) -> list[str]:
    """A line through points, in `height` rows of `width` braille characters.

    Args:
        xs: in rising order, at least one.
        ys: one for each of `xs`, None for a gap, not all of them. Where several points share a column of dots, the
            mean of those that have a value is drawn.
        low, high: the values of the lowest and the highest row of dots.
    """
    heights = columns(xs, ys, 2 * width)
    rows = [None if y is None else round((4 * height - 1) * (1 - share(y, low, high))) for y in heights]
    cells = [[0x2800] * width for _ in range(height)]
    for column, row in enumerate(rows):
        if row is None:
            continue
        neighbour = rows[max(column - 1, 0)]
        before = row if neighbour is None else neighbour
        # From the neighbour's row on, so that a steep line has no gaps.
        for dot in range(min(row, before + 1), max(row, before - 1) + 1):
            cells[dot // 4][column // 2] |= DOTS[dot % 4][column % 2]
    return ["".join(map(chr, row)) for row in cells]


def columns(xs: Sequence[float], ys: Sequence[float | None], count: int) -> list[float | None]:
    """The values of a line at `count` places from its first point to its last; of one point, that value alone.

    None at a point without a value, and on the way to it and from it.
    """
    if xs[0] == xs[-1]:
        return [mean(ys)]
    points: dict[int, list[float | None]] = {}
    for x, y in zip(xs, ys, strict=True):
        points.setdefault(round((count - 1) * (x - xs[0]) / (xs[-1] - xs[0])), []).append(y)
    means = {column: mean(some) for column, some in points.items()}
    values: list[float | None] = [means[0]]
    for left, right in itertools.pairwise(sorted(means)):
        values += [between(means[left], means[right], part / (right - left)) for part in range(1, right - left)]
        values.append(means[right])
    return values


def between(start: float | None, end: float | None, part: float) -> float | None:
    """The value at that part of the way; None if an end has none."""
    return None if start is None or end is None else start + part * (end - start)


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def bars(values: Sequence[float | None], width: int) -> str:
    """One bar for each value, or for the mean of each stretch where there are more than `width`; a dot for None."""
    stretch = -(-len(values) // width) or 1
    means = [mean(values[i : i + stretch]) for i in range(0, len(values), stretch)]
    known = [one for one in means if one is not None]
    return "".join("·" if m is None else BARS[round(7 * share(m, min(known), max(known)))] for m in means)


def share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, 0 to 1; in the middle if these are the same."""
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def short(value: float) -> str:
    """A number in seven characters or less: whole from 1,000 on, with three digits below, or as many as fit."""
    forms = (",.0f", ".1e", ".0e") if abs(value) >= 999.5 else (".3g", ".2g", ".1g")
    return next(text for form in forms if len(text := format(value, form)) <= SHORT)


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
