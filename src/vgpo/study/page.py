"""The page of a study: one HTML file that needs no network, in the style of a run's report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from vgpo.pages import CHART_SCRIPTS, SHARED, embed_json, inlined, page_environment
from vgpo.pages.texts import fixed, percent, points
from vgpo.pages.verdict import Verdict, difference_sentence, quoted, tone_of
from vgpo.study.results import NOTES
from vgpo.study.statistics import smallest_p_value

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "tables.js", *CHART_SCRIPTS)
LEVEL = 0.05  # of p, below which the verdict calls a difference one
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
        found=study_verdict(data),
        notes=NOTES,
        embedded=embed_json(embedded),
        **inlined([SHARED / "page.css", TEMPLATES / "study.css"], scripts),
    )


def study_verdict(data: Mapping[str, Any]) -> Verdict:
    """The primary comparison: the first method of the first comparison that has a difference to its base."""
    found = [
        (comparison["base"], setting["name"], method["name"], method["difference"])
        for comparison in data["comparisons"]
        for setting in comparison["settings"]
        for method in setting["methods"]
        if method["difference"]
    ]
    if not found:
        return Verdict("open", "No method can be compared yet: a base and another method need a finished run each")
    base, setting, method, difference = found[0]
    low, high, p_value, seeds = (difference[name] for name in ("low", "high", "p_value", "num_pairs"))
    basis = f"{quoted(setting)}; {seeds} {'seed' if seeds == 1 else 'seeds'}, paired; p = {p_value:.3g}"
    headline = difference_sentence(method, base, "held-out accuracy", difference["mean"], low, high, basis)
    details = []
    if p_value >= LEVEL:
        least = smallest_p_value(seeds)
        limit = f" With {seeds} of them p cannot be below {least:.3g}." if least >= LEVEL else ""
        details.append(f"p is not below {LEVEL}: the difference may be due to the choice of seeds.{limit}")
    if len(found) > 1:
        details.append(f"The first of {len(found)} differences to a base; p is not corrected for their number.")
    return Verdict(tone_of(low, high) if p_value < LEVEL else "open", headline, details)


def accuracy_range(setting: Mapping[str, Any]) -> tuple[float, float]:
    """Ends of the axis on which the seeds' held-out accuracies are drawn, in [0, 1]."""
    values = [value for method in setting["methods"] for value in method["points"].values()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = MARGIN * (high - low) or MARGIN
    return max(0.0, low - room), min(1.0, high + room)
