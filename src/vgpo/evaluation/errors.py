"""The error for an evaluation that cannot be run as requested."""

from vgpo.text import visible


class EvaluationError(ValueError):
    """A task, a protocol or a record of an evaluation that cannot be used; the message names it and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))
