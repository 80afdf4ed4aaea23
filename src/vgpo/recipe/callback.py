"""The callback that keeps the run folder of a trainer up to date."""

from vgpo.report.training import RunCallback

__all__ = ["RunCallback"]
