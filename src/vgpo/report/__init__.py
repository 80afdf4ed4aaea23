"""One page drawn from the folders of runs, and views of a run that is still training."""

from vgpo.report.data import report_data
from vgpo.report.page import render, write_report

__all__ = ["render", "report_data", "write_report"]
