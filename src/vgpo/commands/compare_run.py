"""`vgpo compare-run`: one run of a study, in a process of its own."""

from vgpo.recipe.train import ERRORS
from vgpo.study.run import run

__all__ = ["ERRORS", "run"]
