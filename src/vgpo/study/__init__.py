"""Knowing whether it helped: greedy accuracy with its interval."""

from vgpo.study.evaluate import Evaluation, evaluate, wilson_interval

__all__ = ["Evaluation", "evaluate", "wilson_interval"]
