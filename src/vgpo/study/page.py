"""The page of a study: one HTML file that needs no network, in the style of a run's report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from vgpo.pages import SHARED, embed_json, inlined, page_environment
from vgpo.pages.texts import fixed, percent, points
from vgpo.study.results import NOTES
from vgpo.study.statistics import smallest_p_value

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "charts.js")
MARGIN = 0.08  # of the range shown, at each end of the plot of accuracies


def render_study(data: Mapping[str, Any]) -> str:
    """Draw the page of `vgpo.study.results.study_data`'s dict. Text in it is escaped; no other script can run."""
    environment = page_environment(PackageLoader("vgpo.study"))
    environment.filters.update(
        percent=percent, points=points, fixed=fixed, accuracy_range=accuracy_range, smallest_p=smallest_p_value
    )
    scripts = [*(SHARED / name for name in SHARED_SCRIPTS), TEMPLATES / "study.js"]
    embedded = {
        "parts": [
            {
                "charts": setting["charts"],
                "methods": [
                    {key: method[key] for key in ("name", "number", "deciles")} for method in setting["methods"]
                ],
            }
            for comparison in data["comparisons"]
            for setting in comparison["settings"]
        ]
    }
    return environment.get_template("study.html.jinja").render(
        data=data,
        notes=NOTES,
        embedded=embed_json(embedded),
        **inlined([SHARED / "page.css", TEMPLATES / "study.css"], scripts),
    )


def accuracy_range(setting: Mapping[str, Any]) -> tuple[float, float]:
    """Ends of the axis on which the seeds' held-out accuracies are drawn, in [0, 1]."""
    values = [value for method in setting["methods"] for value in method["points"].values()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = MARGIN * (high - low) or MARGIN
    return max(0.0, low - room), min(1.0, high + room)
