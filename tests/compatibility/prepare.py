"""Turns files that a version has just written into a fixture: without the machine's paths, sealed as before.

python -m tests.compatibility.prepare FOLDER OLD=NEW ...

replaces texts in the text files below FOLDER, and renews the SHA-256 of the files in manifests and seals.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXTS = {".diff", ".html", ".jinja", ".json", ".jsonl", ".md", ".txt", ".yaml"}


def replace_texts(folder: Path, replacements: Sequence[tuple[str, str]]) -> None:
    for path in folder.rglob("*"):
        if path.suffix in TEXTS:
            content = old = path.read_bytes()
            for found, new in replacements:
                content = content.replace(found.encode(), new.encode())
            if content != old:
                path.write_bytes(content)


def renew_hashes(folder: Path) -> None:
    """Of the files that a checkpoint's manifest or the seal of a study's run lists."""
    for name, entry in (("manifest.json", size_and_digest), ("done.json", digest)):
        for path in folder.rglob(name):
            content = json.loads(path.read_text())
            files = {file: entry(path.with_name(file)) for file in content["files"]}
            if files != content["files"]:
                path.write_text(json.dumps({**content, "files": files}, indent=1))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size_and_digest(path: Path) -> dict[str, Any]:
    return {"sha256": digest(path), "size": path.stat().st_size}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    replace_texts(folder, [(old, new) for old, _, new in (word.partition("=") for word in sys.argv[2:])])
    renew_hashes(folder)
