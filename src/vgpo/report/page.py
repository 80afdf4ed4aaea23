"""The report page: one HTML file that needs no network, drawn from `report_data` and from nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from vgpo.pages import CHART_SCRIPTS, SHARED, embed_json, inlined, page_environment
from vgpo.pages.texts import date, percent, points
from vgpo.report.data import report_data
from vgpo.run.storage import write_file

TEMPLATES = Path(__file__).parent / "templates"
SHARED_SCRIPTS = ("elements.js", "tables.js", *CHART_SCRIPTS, "tokens.js", "answers.js")
SCRIPTS = ("curves.js", "metrics.js", "held_out.js", "rollouts.js", "live.js", "main.js")


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained page about these run folders, drawn over each other.

    Args:
        runs: 1 to 8 run folders.
        out: the HTML file to write; an older one is replaced.

    Returns:
        Path: `out`.

    Raises:
        RunFolderError: no run, a run given twice, more than 8; a folder without a run or with a broken file;
            or the disk write failed.
    """
    page = render(report_data(runs))
    out = Path(out)
    write_file(out, page.encode("utf-8"))
    return out


def render(data: Mapping[str, Any]) -> str:
    """Draw the page of `report_data`'s dict. Text in it is escaped, and no script but the page's own can run."""
    environment = page_environment(PackageLoader("vgpo.report"))
    scripts = [*(SHARED / name for name in SHARED_SCRIPTS), *(TEMPLATES / name for name in SCRIPTS)]
    environment.filters.update(percent=percent, points=points, date=date, header_facts=header_facts)
    return environment.get_template("report.html.jinja").render(
        data=data,
        embedded=embed_json(data),
        **inlined([SHARED / "page.css"], scripts),
    )


def header_facts(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return model, seed, commit and day, each once with the values that occur."""
    facts = {
        "": [run["model"] for run in runs if run["model"]],
        "seed ": [str(run["seed"]) for run in runs],
        "commit ": [run["commit"][:10] for run in runs if run["commit"]],
        "started ": [run["started"][:10] for run in runs],
    }
    return [label + ", ".join(dict.fromkeys(values)) for label, values in facts.items() if values]
