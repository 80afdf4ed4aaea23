"""Package versions with which the tests passed. pyproject.toml has the resulting bounds; `vgpo doctor` checks them."""

from typing import NamedTuple

from packaging.version import Version


class Tested(NamedTuple):
    """The oldest and the newest version of a package with which the tests passed."""

    oldest: Version
    newest: Version

    @property
    def bounds(self) -> str:
        """Specifier of pyproject.toml: from the oldest version to one minor version above the newest."""
        return f">={self.oldest},<{self.newest.major}.{self.newest.minor + 2}"

    def is_newer(self, installed: Version) -> bool:
        """Whether `installed` has a minor version above the newest; patch releases count as tested."""
        return installed.release[:2] > self.newest.release[:2]


# docs/tested_versions.md lists the runs.
TESTED = {
    name: Tested(Version(oldest), Version(newest))
    for name, oldest, newest in (
        ("accelerate", "1.13.0", "1.15.0"),
        ("datasets", "4.7.0", "5.2.0"),
        ("peft", "0.18.0", "0.21.2"),
        ("torch", "2.8.0", "2.14.1"),
        ("torchvision", "0.23.0", "0.29.1"),
        ("transformers", "5.10.4", "5.24.0"),
        ("trl", "1.16.0", "1.16.0"),
    )
}
