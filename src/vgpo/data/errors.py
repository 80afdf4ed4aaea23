"""The error of the data package."""

from vgpo.text import visible


class DataError(ValueError):
    """A dataset, a row or a template that cannot be used; the message names the place and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))
