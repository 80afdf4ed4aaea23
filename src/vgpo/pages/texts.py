"""Numbers and texts as pages show them."""

from datetime import datetime

MAX_TOKENS = 4096
MAX_TOKEN_CHARACTERS = 400
MAX_TEXT_CHARACTERS = 4000


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Percentage points with their sign (a true minus)."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def points_interval(low: float, high: float) -> str:
    return f"[{points(low)}, {points(high)}]"


def date(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits and a true minus; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def rounded(values: list[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values[:MAX_TOKENS]]


def truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} […{len(text) - limit:,} more characters]"
