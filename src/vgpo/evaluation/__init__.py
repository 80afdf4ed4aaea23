"""Measuring one model: greedy accuracy, what is left of it without the image, and published benchmarks."""

from vgpo.evaluation.accuracy import Evaluation, evaluate, wilson_interval

__all__ = ["Evaluation", "evaluate", "wilson_interval"]
