"""The YAML files that come with the package: recipes, files for `accelerate launch`, and studies."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vgpo.recipe.files import packaged_folder, recipe_folder


@dataclass(frozen=True)
class PackagedFile:
    """A file, what it is for, and the first line of its comment."""

    name: str
    kind: str
    path: Path

    @property
    def title(self) -> str:
        """The first sentence of the comment at its top; without indented lines."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# ") or line.startswith("#  "):
                break
            lines.append(line.strip("# "))
        return " ".join(lines).partition(". ")[0].rstrip(".:")


def packaged_files() -> Iterator[PackagedFile]:
    """Every file, sorted by kind and name."""
    folders = {
        "recipe": recipe_folder(),
        "accelerate": recipe_folder() / "accelerate",
        "study": packaged_folder("studies"),
    }
    for kind, folder in folders.items():
        for path in sorted(folder.glob("*.yaml")):
            yield PackagedFile(path.stem, kind, path)
