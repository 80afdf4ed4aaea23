"""Inspect where a model looks: per-token measurements of its responses, as data and as a page."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vgpo.inspection.inspection import Inspection, iter_questions, write_inspection
from vgpo.inspection.schema import InspectionError

if TYPE_CHECKING:
    from vgpo.inspection.compute import inspect

__all__ = ["Inspection", "InspectionError", "inspect", "iter_questions", "write_inspection"]


def __getattr__(name: str) -> Any:
    # Rendering a page does not need transformers; only running a model does.
    if name == "inspect":
        return import_module("vgpo.inspection.compute").inspect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
