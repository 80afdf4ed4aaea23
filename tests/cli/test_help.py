"""The command line answers at once."""

import resource
import subprocess
import sys

import pytest

SHOW_IMPORTS = """
import sys
from vgpo.cli import main
sys.argv = ["vgpo", {words}]
try:
    main()
except SystemExit:
    print(*sys.modules)
"""


def modules_after(*words: str) -> set[str]:
    """Modules that are loaded once `vgpo WORDS` is done."""
    script = SHOW_IMPORTS.format(words=", ".join(map(repr, words)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        (),
        ("quickstart",),
        ("train",),
        ("eval",),
        ("inspect",),
        ("focus-check",),
        ("report",),
        ("watch",),
        ("compare",),
        ("merge",),
        ("export",),
        ("toy",),
    ],
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    loaded = modules_after(*command, "--help")
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "trl", "datasets", "numpy", "PIL", "yaml"}


@pytest.mark.process
def test_help_takes_less_than_a_second() -> None:
    # Of CPU time, which other processes that hold the machine do not add to.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "vgpo.cli", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    for command in ("quickstart", "train", "eval", "inspect", "report", "watch", "compare", "merge", "export", "toy"):
        assert command in done.stdout
