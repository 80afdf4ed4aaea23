"""Hooks of mkdocs: links of the documentation to files outside of docs/ work on the site as they do on GitHub.

Pages in the root of the repository become pages of the site; other files that a page links to are copied to `source/`.
A link to a folder becomes its text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages of the root, and every file outside of docs/ that a page links to."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        for _text, target, _anchor in LINK.findall(page.content_string):
            path = repository_path(page.src_uri, target)
            place = site_place(path)
            if place.startswith("source/") and (ROOT / path).is_file() and place not in files.src_uris:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to where their files are on the site."""
    return LINK.sub(lambda link: site_link(page.file.src_uri, link), markdown)


def site_link(src_uri: str, link: re.Match[str]) -> str:
    """A link as the site has it."""
    text, target, anchor = link.groups()
    path = repository_path(src_uri, target)
    if (ROOT / path).is_dir():
        return text
    relative = posixpath.relpath(site_place(path), posixpath.dirname(src_uri) or ".")
    return f"[{text}]({relative}{anchor or ''})"


def repository_path(src_uri: str, target: str) -> str:
    """Where the target of a link is in the repository."""
    folder = "" if src_uri in ROOT_PAGES else posixpath.join("docs", posixpath.dirname(src_uri))
    return posixpath.normpath(posixpath.join(folder, target))


def site_place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path in ROOT_PAGES else f"source/{path}"
