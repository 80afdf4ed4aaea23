"""What a run leaves behind: a folder that explains itself, and one page drawn from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vgpo.report.data import report_data
from vgpo.report.page import render, write_report
from vgpo.report.run_folder import RunFolder
from vgpo.report.storage import RunFolderError

if TYPE_CHECKING:
    from vgpo.report.callback import RunCallback

__all__ = ["RunCallback", "RunFolder", "RunFolderError", "render", "report_data", "write_report"]


def __getattr__(name: str) -> Any:
    # A report is drawn without transformers; only training needs the callback.
    if name == "RunCallback":
        return import_module("vgpo.report.callback").RunCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
