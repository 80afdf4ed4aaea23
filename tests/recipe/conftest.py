"""The fixtures of the commands, which write and read recipes too."""

from tests.cli.conftest import same_environment_afterwards, toy_files, write_recipe

__all__ = ["same_environment_afterwards", "toy_files", "write_recipe"]
