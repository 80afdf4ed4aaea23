"""Verifiable rewards: is the boxed answer correct, and does the response have the required format?

`grade` and `accuracy_reward` follow mathruler, the grader of VGPO's training (arXiv 2604.09349), with a strict
reading of multiple-choice letters. Symbolic checks run in confined worker processes, which are killed when they take
too long; a model's text is never evaluated in the calling process. `load_reward` finds a built-in or user-defined
reward function.
"""

from vgpo.answers import choice_letter, extract_boxed, strip_outer_box
from vgpo.rewards.checked import (
    GIVEN,
    RewardError,
    RewardFunction,
    check_arguments,
    checked,
    is_async,
    reward_name,
)
from vgpo.rewards.functions import accuracy_reward, format_reward, lenient_accuracy_reward
from vgpo.rewards.grader import Grader, GraderStatistics, default_grader, grade, lenient_grader
from vgpo.rewards.sources import REWARDS, load_reward

__all__ = [
    "GIVEN",
    "REWARDS",
    "Grader",
    "GraderStatistics",
    "RewardError",
    "RewardFunction",
    "accuracy_reward",
    "check_arguments",
    "checked",
    "choice_letter",
    "default_grader",
    "extract_boxed",
    "format_reward",
    "grade",
    "is_async",
    "lenient_accuracy_reward",
    "lenient_grader",
    "load_reward",
    "reward_name",
    "strip_outer_box",
]
