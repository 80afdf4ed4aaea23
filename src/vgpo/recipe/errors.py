"""The error for invalid recipes."""


class RecipeError(ValueError):
    """An invalid recipe or command line; the message names file, key and fix."""
