"""`vgpo compare-run`: one run of a study, in a process of its own."""

from vgpo.recipe import train
from vgpo.study.run import run

ERRORS = (*train.ERRORS, ImportError)  # of a library that only the evaluation on benchmarks needs

__all__ = ["ERRORS", "run"]
