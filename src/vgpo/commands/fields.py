"""`vgpo train --help-fields`: the fields of a recipe, by a word in their name or description."""

from rich.console import Console
from rich.text import Text

from vgpo.recipe.field_sources import SourceField, recipe_fields
from vgpo.recipe.files import REFUSED_KEYS
from vgpo.text import did_you_mean

PACKAGES = ("vgpo", "trl", "transformers")
INDENT = "    "


def run(word: str) -> bool:
    """Print the fields whose name or description contains a word, those of vgpo first. Returns whether there are any.

    Args:
        word: In any case, with hyphens or underscores; "" is in all.
    """
    console = Console()
    fields = recipe_fields()
    found = [one for name, one in fields.items() if name not in REFUSED_KEYS and matches(one, word)]
    for one in sorted(found, key=lambda one: PACKAGES.index(one.package)):
        default = "required" if one.default is None else f"default {one.default}"
        console.print(Text.assemble((one.name, "bold"), f": {one.type}, {default} ({one.package})"), soft_wrap=True)
        if one.help:
            console.print(Text(one.help), width=console.width, style="dim")
    if not found:
        console.print(
            Text(f"no field of a recipe has {word!r} in its name or description{did_you_mean(word, fields)}")
        )
    return bool(found)


def matches(one: SourceField, word: str) -> bool:
    """Whether a word is in the name or the description of a field."""
    word = word.lower()
    return word.replace("-", "_") in one.name or word in one.help.lower()
