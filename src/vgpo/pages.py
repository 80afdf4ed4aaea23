"""Pages drawn from untrusted text: in every one of them all text is made visible and escaped, without asking."""

import json
from typing import Any

import jinja2
from markupsafe import Markup

from vgpo.text import visible


def page_environment(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Templates in which every `{{ value }}` is escaped, with what steers a line shown (`visible`).

    Only what is marked as `Markup` is put in as it is. A name that a template does not get is an error.
    """
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embed_json(data: object) -> Markup:
    """`data` as JSON for a `<script>` that no text inside can end: ASCII only, and without `<`, `>` and `&`."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _shown(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is a subclass
