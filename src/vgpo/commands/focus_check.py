"""`vgpo focus-check`: whether VGPO has something to gain for a model on a dataset, before a training."""

from vgpo.focus_check.check import ERRORS, Request, run

__all__ = ["ERRORS", "Request", "run"]
