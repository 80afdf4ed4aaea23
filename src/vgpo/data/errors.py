"""The one error of the data package."""


class DataError(ValueError):
    """A data set, a row or a template that cannot be used; the message names the place and the fix."""
