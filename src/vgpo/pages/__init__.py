"""Pages drawn from untrusted text: in every one of them all text is made visible and escaped, without asking."""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vgpo.pages.tables import Column
from vgpo.text import visible

SHARED = Path(__file__).parent / "shared"  # styles and scripts of all pages
CHART_SCRIPTS = ("scales.js", "charts.js", "chart_controls.js", "downloads.js", "positions.js")  # after elements.js


def page_environment(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Templates in which every `{{ value }}` is escaped, with what steers a line shown (`visible`).

    Besides those of `loader` there is `components.jinja`, the parts that all pages share, and `column`, a `Column`.
    Only what is marked as `Markup` is put in as it is. A name that a template does not get is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([loader, jinja2.FileSystemLoader(SHARED)]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["column"] = Column
    return environment


def embed_json(data: object) -> Markup:
    """`data` as JSON for a `<script>` that no text inside can end: ASCII only, and without `<`, `>` and `&`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def inlined(styles: Iterable[Path], scripts: Iterable[Path]) -> dict[str, Markup | str]:
    """Files of the package for a page that loads nothing, as a template takes them.

    Returns:
        `style` and `script`, and `style_hash` and `script_hash`, by which a content security policy allows just these.
    """
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    script = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    return {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _content_hash(style),
        "script_hash": _content_hash(script),
    }


def _content_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _shown(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is a subclass
