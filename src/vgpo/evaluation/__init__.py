"""Measuring one model: greedy accuracy, and what is left of it without the image."""

from vgpo.evaluation.accuracy import Evaluation, evaluate, wilson_interval

__all__ = ["Evaluation", "evaluate", "wilson_interval"]
