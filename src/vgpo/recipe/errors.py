"""What is wrong with a recipe."""


class RecipeError(ValueError):
    """A recipe or a command line that cannot be run; the message names file, key and fix."""
