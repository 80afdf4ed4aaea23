"""Verifiable rewards: is the boxed answer right, and does the response have the asked form.

`grade` and `accuracy_reward` follow mathruler, the grader of VGPO's training (arXiv 2604.09349), with two
additions: a strict reading of multiple-choice letters, and a worker process that is killed when the symbolic
check takes too long. A model's text is never evaluated in the calling process.
"""

from vgpo.rewards.answers import extract_boxed
from vgpo.rewards.functions import accuracy_reward, format_reward
from vgpo.rewards.grader import Grader, GraderStatistics, default_grader, grade

__all__ = [
    "Grader",
    "GraderStatistics",
    "accuracy_reward",
    "default_grader",
    "extract_boxed",
    "format_reward",
    "grade",
]
